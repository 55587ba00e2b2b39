"""Programs of others that call the gateway, each in a place of its own, from PyPI and from npm.

They are kept in `build/clients`, under a name that says what is in it, so a second run installs nothing.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.journey.node import install
from tests.journey.stack import ROOT

KEPT = ROOT / "build" / "clients"
LOCK = ROOT / "tests" / "journey" / "clients.lock"
UV = ROOT / ".venv" / "bin" / "uv"
INSTALL_S_MAX = 240
# What npm and uv say where nobody answers; all else is a fault of what is to be installed.
_NO_NETWORK = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|network|[Ff]ailed to (?:fetch|connect)|dns error|timed out|E5\d\d"
)


def python_of_clients() -> Path:
    """A Python with LiteLLM and LangChain; what they need is not what we need."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    folder = KEPT / f"python-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        _run([str(UV), "venv", "--quiet", "--clear", str(folder)])
        _run(
            [
                str(UV),
                "pip",
                "install",
                "--quiet",
                "--require-hashes",
                "--python",
                str(python),
                "-r",
                str(LOCK),
            ]
        )
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
            _run(["node", str(folder / "node_modules" / then)])
        (folder / "ready").touch()
    return folder


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, timeout=INSTALL_S_MAX)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{command[0]} cannot install a client within {INSTALL_S_MAX} s")
    said = done.stderr.decode()
    if done.returncode and _NO_NETWORK.search(said):
        pytest.skip(f"{command[0]} cannot reach where clients are kept: {said[-200:]}")
    assert not done.returncode, f"{command[0]} cannot install a client: {said[-500:]}"
