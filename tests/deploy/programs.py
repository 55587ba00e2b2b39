"""Programs of other people that deploy/ is checked with: the one installed here, else Debian's own.

Debian's packages are only unpacked under build/, never installed: nothing of them is started as a service.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from tests.tree import ROOT
from tests.waiting import HUNG_S

UNPACKED = ROOT / "build" / "debian"
FETCH_S_MAX = 180


@cache
def program(name: str, *packages: str, places: str | None = None) -> str:
    """The path of a program, of `places` or the usual path, else out of Debian's packages.

    The test is skipped where there is neither the program nor a mirror of Debian's to have it from.
    """
    found = shutil.which(name) or (shutil.which(name, path=places) if places else None)
    if found is not None:
        return found
    folder = unpacked(*packages)
    found = shutil.which(name, path=":".join(str(path) for path in folder.glob("usr/**/*bin")))
    assert found is not None, f"Debian's {packages[0]} has no {name}"
    libraries = ":".join(str(path) for path in folder.glob("usr/lib/*-linux-*"))
    start = folder / f"start-{name}"
    start.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{found}" "$@"\n')
    start.chmod(0o755)
    return str(start)


def redis_server() -> str:
    """Debian's Redis; the test is skipped where there is none to be had."""
    return program("redis-server", "redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1")


def unpacked(*packages: str) -> Path:
    """The folder with Debian's packages; the test is skipped where no mirror has them."""
    if shutil.which("apt-get") is None:
        _skip(f"there is no apt-get to fetch Debian's {packages[0]} with")
    folder = UNPACKED / "+".join(packages)
    if not folder.exists() and (trouble := _unpack(packages, folder)):
        _skip(f"Debian's {packages[0]} cannot be fetched: {trouble}")
    return folder


def _skip(why: str) -> NoReturn:
    pytest.skip(why, allow_module_level=True)


@cache
def _unpack(packages: tuple[str, ...], folder: Path) -> str:
    """Fetch and unpack packages; why that is not possible, asked for once."""
    making = folder.with_name(f"{folder.name}-{os.getpid()}")
    making.mkdir(parents=True)
    download = ["apt-get", "download", "-q", *packages]
    if trouble := _tried(download, making):
        _tried(["apt-get", "update", "-qq"], making)
        trouble = _tried(download, making)
    if trouble:
        shutil.rmtree(making)
        return trouble
    for archive in making.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(making)], check=True)
        archive.unlink()
    try:
        making.rename(folder)
    except OSError:  # another test run was quicker
        shutil.rmtree(making)
    return ""


def _tried(command: list[str], folder: Path) -> str:
    """What is wrong with a command, empty where it did what it should."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=FETCH_S_MAX)
    except subprocess.TimeoutExpired:
        return f"not within {FETCH_S_MAX} s"
    return done.stderr.decode()[-200:] or "it failed" if done.returncode else ""


def run(*command: str, cwd: Path | None = None, **environ: str) -> str:
    """What a program says, both streams together; an AssertionError with it where it fails."""
    done = subprocess.run(
        command, check=False, cwd=cwd, env=os.environ | environ,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HUNG_S,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout
