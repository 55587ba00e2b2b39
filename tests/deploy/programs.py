"""Programs of other people that deploy/ is checked with: the one installed here, else Debian's own.

Debian's packages are only unpacked under build/, never installed: nothing of them is started as a service.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.tree import ROOT

UNPACKED = ROOT / "build" / "debian"
FETCH_S_MAX = 180


@cache
def program(name: str, *packages: str, places: str | None = None) -> str:
    """The path of a program, of `places` or the usual path, else out of Debian's packages.

    The test is skipped where there is neither the program nor Debian's apt.
    """
    found = shutil.which(name) or (shutil.which(name, path=places) if places else None)
    if found is not None:
        return found
    if shutil.which("apt-get") is None:
        pytest.skip(f"{name} is not installed, and there is no apt-get to fetch Debian's {packages[0]} with")
    folder = UNPACKED / "+".join(packages)
    if not folder.exists():
        _unpack(packages, folder)
    found = shutil.which(name, path=":".join(str(path) for path in folder.glob("usr/**/bin")))
    assert found is not None, f"Debian's {packages[0]} has no {name}"
    libraries = ":".join(str(path) for path in folder.glob("usr/lib/*-linux-*"))
    start = folder / f"start-{name}"
    start.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{found}" "$@"\n')
    start.chmod(0o755)
    return str(start)


def _unpack(packages: tuple[str, ...], folder: Path) -> None:
    making = folder.with_name(f"{folder.name}-{os.getpid()}")
    making.mkdir(parents=True)
    download = ["apt-get", "download", "-q", *packages]
    if subprocess.run(download, cwd=making, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False, timeout=FETCH_S_MAX)
        subprocess.run(download, cwd=making, check=True, timeout=FETCH_S_MAX)
    for archive in making.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(making)], check=True)
        archive.unlink()
    try:
        making.rename(folder)
    except OSError:  # another test run was quicker
        shutil.rmtree(making)


def run(*command: str, cwd: Path | None = None, **environ: str) -> str:
    """What a program says, both streams together; an AssertionError with it where it fails."""
    done = subprocess.run(
        command, check=False, cwd=cwd, env=os.environ | environ,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout
