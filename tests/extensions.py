"""Modules that are written in C, and the compiled hot path. `deploy/compile.py` builds and keeps them."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tree import ROOT


def loaded(name: str, path: Path) -> ModuleType:
    """Return the module in the file `path`, under no name that others import."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def compiler() -> Any:
    """Return the program that compiles the hot path."""
    return loaded("compile_hot_path", ROOT / "deploy" / "compile.py")


def built(source: Path, flags: str = "") -> Any:
    """Load the module of a C file; any warning is an error. Skip the test without a compiler."""
    ask_for_compiler()
    flags = f"-Wall -Wextra -Werror {flags}"
    made = compiler().kept(
        source.stem, [source], flags, lambda folder: compiler().extension(source, folder, flags)
    )
    return loaded(source.stem, next(made.glob("*.so")))


def compiled() -> Path:
    """Return a folder that has the packages with the hot path compiled. Skip the test without a compiler.

    What mypyc makes of the modules is compared, not what a C compiler makes of that: the quickest level is used.
    """
    ask_for_compiler()
    return Path(compiler().compiled(level="0"))


def ask_for_compiler() -> None:
    if compiler().lacking():
        pytest.skip("this machine has no C compiler or no Python.h")
