"""Packages of Node, from the registry npm is set up with; without it a test is skipped, not failed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

INSTALL_S_MAX = 240


def install(npm: str, folder: Path, *packages: str) -> None:
    """Install packages into a folder. Scripts of theirs are not run."""
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    command, named = [npm, "install", *options, *packages], " ".join(packages)
    try:
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=INSTALL_S_MAX)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm cannot install {named} within {INSTALL_S_MAX} s")
    if done.returncode:
        pytest.skip(f"npm cannot install {named}: {done.stderr.decode()[-200:]}")
