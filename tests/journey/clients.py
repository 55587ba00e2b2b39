"""Programs of others that call the gateway, each in a place of its own, from PyPI and from npm.

They are kept in `build/clients`, under a name that says what is in it, so a second run installs nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from tests.journey.node import install, run_installer
from tests.journey.stack import ROOT

KEPT = ROOT / "build" / "clients"
LOCK = ROOT / "tests" / "journey" / "clients.lock"
UV = Path(sys.executable).with_name("uv")


def python_of_clients() -> Path:
    """A Python with LiteLLM and LangChain; what they need is not what we need."""
    return python_with("--require-hashes", "-r", str(LOCK), of=LOCK.read_text(encoding="utf-8"))


def python_with(*packages: str, of: str = "", by_pip: bool = False) -> Path:
    """A Python with these packages, kept by their names or by what is in `of`; uv installs them, or pip."""
    folder = KEPT / f"python-{hashlib.sha256((of or repr(packages)).encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        seed = ["--seed"] if by_pip else []
        run_installer([str(UV), "venv", "--quiet", "--clear", "--python", sys.executable, *seed, str(folder)])
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        uv = [str(UV), "pip", "install", "--quiet", "--python", str(python)]
        run_installer([*(pip if by_pip else uv), *packages])
        (folder / "ready").touch()
    return python


def node_with(*packages: str, then: str = "") -> Path:
    """A folder with these packages of Node, in the versions that are named.

    `then` is the script that one of them wants to be run; no other is.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node is not installed, and its packages cannot be had without it")
    folder = KEPT / f"node-{hashlib.sha256(repr(packages).encode()).hexdigest()[:12]}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private":true,"type":"module"}')
        install(npm, folder, *packages)
        if then:
            run_installer(["node", str(folder / "node_modules" / then)])
        (folder / "ready").touch()
    return folder
