"""Packages of Node, from the registry npm is set up with; without it a test is skipped, not failed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

INSTALL_S_MAX = 240


def install(npm: str, folder: Path, package: str) -> None:
    """Install a package into a folder."""
    command = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error", package]
    try:
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=INSTALL_S_MAX)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm cannot install {package} within {INSTALL_S_MAX} s")
    if done.returncode:
        pytest.skip(f"npm cannot install {package}: {done.stderr.decode()[-200:]}")
