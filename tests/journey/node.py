"""Packages of Node, from the registry npm is set up with; where that does not answer a test is skipped."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

INSTALL_S_MAX = 240
# What npm and uv say where nobody answers, or a registry refuses; all else is a fault of what is installed.
_NO_REGISTRY = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|E40[134]|E5\d\d|network|[Ff]ailed to (?:fetch|connect)|dns error"
    r"|timed out"
)


def install(npm: str, folder: Path, *packages: str) -> None:
    """Install packages into a folder. Scripts of theirs are not run."""
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    run_installer([npm, "install", *options, *packages], folder)


def run_installer(command: list[str], folder: Path | None = None) -> None:
    """Run what installs: the test is skipped where it cannot be had, and fails where it is wrong."""
    shown = " ".join(command)
    try:
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=INSTALL_S_MAX)
    except subprocess.TimeoutExpired:
        pytest.skip(f"not within {INSTALL_S_MAX} s: {shown}")
    said = done.stderr.decode()
    if done.returncode and _NO_REGISTRY.search(said):
        pytest.skip(f"no registry for {shown}: {said[-200:]}")
    assert not done.returncode, f"{shown}: {said[-500:]}"
