"""A package index on this machine takes the wheel, and `uvx` runs it from there."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.deploy import installed
from tests.journey.clients import UV
from tests.tree import ROOT
from tests.waiting import wait_until

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
INDEX = "pypiserver==2.4.1"


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index that anybody may upload to."""
    port, packages = free_port(), tmp_path / "packages"
    packages.mkdir()
    words = ["run", "--port", str(port), "--interface", "127.0.0.1", "-P", ".", "-a", ".", str(packages)]
    with subprocess.Popen([UV, "tool", "run", "--from", INDEX, "pypi-server", *words]) as server:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(port))
        yield url
        server.terminate()


def test_uvx_runs_what_was_published(index: str, tmp_path: Path) -> None:
    wheel = installed.said_by(sys.executable, ROOT / "deploy/wheels.py", tmp_path, "--pure", cwd=tmp_path)
    said = ["--username", "anybody", "--password", "any"]
    installed.said_by(UV, "publish", "--publish-url", index, *said, wheel.strip(), cwd=tmp_path)
    words = ["tool", "run", "--index", f"{index}/simple", "--from", f"tollkeeper=={VERSION}", "tollkeeper"]
    assert installed.said_by(UV, *words, "--version", cwd=tmp_path) == f"tollkeeper {VERSION}\n"
