"""The program of the release before, as the repository's history has it, for tests of two versions."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

from persistence.schema.standing import KNOWN
from tests.tree import ROOT

VERSIONS: Final = "persistence/schema/migrations/versions"
PARTS: Final = ("gateway", "lua", "persistence", "pyproject.toml")


def write_release(tree: Path, *more: str) -> Path:
    """Write the program of the release before into a new folder, and `more` of its parts; skip the test without history.

    It is the last commit whose newest schema is the baseline.
    """
    brought = _git("log", "-1", "--format=%H", "--diff-filter=A", "--", f"{VERSIONS}/v{KNOWN[1]}_*")
    if brought.returncode or not brought.stdout.strip():
        pytest.skip("this checkout has no history")
    tree.mkdir()
    packed = _git("archive", f"{brought.stdout.strip().decode()}^", *PARTS, *more)
    subprocess.run(["tar", "-x", "-C", tree], input=packed.stdout, check=True)
    # Its own name and version, which it asks its installation for.
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    (about := tree / f"{project['name']}-{project['version']}.dist-info").mkdir()
    (about / "METADATA").write_text("Name: {name}\nVersion: {version}\n".format_map(project))
    return tree


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
