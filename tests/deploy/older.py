"""The program one release behind, as it was: tests upgrade from it, and roll back to it.

It is kept here whole, since a clone may have no history. It knows the schema up to version 0070, and the
present layout of what Redis holds. `python -m tests.deploy.older COMMIT` packs another one, once there is a
release behind the next.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.tree import ROOT

ARCHIVE = Path(__file__).parent / "older.tar.xz"
PACKAGES = ("gateway", "lua", "persistence")


def unpack(folder: Path) -> Path:
    """Where the older program lies from now on: it is run with this folder as its PYTHONPATH."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def pack(commit: str) -> None:
    """Keep the program of a commit instead."""
    whole = subprocess.run(["git", "archive", commit, *PACKAGES], cwd=ROOT, capture_output=True, check=True)
    with (
        tarfile.open(fileobj=io.BytesIO(whole.stdout)) as found,
        tarfile.open(ARCHIVE, "w:xz", preset=9) as kept,
    ):
        for member in found:
            kept.addfile(member, found.extractfile(member) if member.isfile() else None)


if __name__ == "__main__":
    pack(sys.argv[1])
