"""Modules that are written in C, and the compiled hot path: built once a checkout, by what they are made of.

Each build stands in `build/c` under a hash of its sources, its flags, deploy/compile.py and the Python that
loads it. A build that is not whole has no name there, so that processes may build beside each other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from tests.tree import ROOT

BUILDS: Final = ROOT / "build" / "c"
BUILD_S_MAX: Final = 1_800
# Of one name: more than there are flags of it.
BUILDS_MAX: Final = 6
_SCRIPT: Final = ROOT / "deploy" / "compile.py"


def loaded(name: str, path: Path) -> ModuleType:
    """The module in that file, under no name that others import."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def compiler() -> Any:
    """The program that compiles the hot path."""
    return loaded("compile_hot_path", _SCRIPT)


def built(source: Path, flags: str = "") -> Any:
    """Load the module of a C file; any warning is an error. Skips without a compiler."""
    flags = f"-Wall -Wextra -Werror {flags}"
    made = build_of(source.stem, [source], flags, lambda folder: compiler().extension(source, folder, flags))
    return loaded(source.stem, next(made.glob("*.so")))


def compiled() -> Path:
    """Return a folder that has the packages with the hot path compiled. Skips without a compiler."""
    # Modules that stay interpreted are copied beside the compiled ones, and say of what types these are.
    files = (path for package in compiler().PACKAGES for path in (ROOT / package).rglob("*"))
    sources = [one for one in files if one.is_file() and one.suffix not in {".so", ".pyd", ".pyc"}]
    lock = ROOT / "requirements-dev.lock"  # the version of mypyc
    return build_of("hot_path", [*sources, lock], os.environ.get("CFLAGS", ""), _compile)


def _compile(folder: Path) -> None:
    program = [sys.executable, str(_SCRIPT), str(folder)]
    # What mypyc makes of the modules is held to the tests, not what a C compiler makes of that: quick.
    environ = os.environ | {"MYPYC_OPT_LEVEL": "0"}
    done = subprocess.run(
        program, env=environ, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def build_of(name: str, sources: Iterable[Path], flags: str, build: Callable[[Path], object]) -> Path:
    """Return the folder of a build, which is made where there is none of these sources and flags."""
    if compiler().lacking():
        pytest.skip("this machine has no C compiler or no Python.h")
    key = hashlib.sha256(f"{sys.version} {sysconfig.get_config_vars('CFLAGS', 'LDSHARED')} {flags}".encode())
    for path in (_SCRIPT, *sorted(sources)):
        key.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    made = BUILDS / f"{name}-{key.hexdigest()[:16]}"
    if not made.is_dir():
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS, prefix=".") as folder:
            begun = Path(folder, name)
            begun.mkdir()
            build(begun)
            with suppress(OSError):  # another process was quicker
                begun.rename(made)
        for old in sorted(BUILDS.glob(f"{name}-*"), key=lambda one: one.stat().st_mtime)[:-BUILDS_MAX]:
            shutil.rmtree(old, ignore_errors=True)
    return made
