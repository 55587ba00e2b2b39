"""Whether a backup can be restored: it is, into a database made for it on the same server, and checked.

Part of the composition root. What was backed up and proven is noted in the database itself, so that metrics
can tell how old the last one is.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from gateway.errors import BackupFailed
from gateway.ops.backup import Manifest, restore
from persistence.schema import proofs

_OURS = re.compile(r"tollkeeper-\d{8}T\d{6}Z\.tar")


def note(url: str, file: Path, manifest: Manifest) -> int:
    """Note in the database that a backup of it was written; the number of the note."""
    taken_at = datetime.fromisoformat(manifest.taken_at)
    return proofs.note(url, proofs.Taken(file.name, taken_at, manifest.bytes, manifest.sha256))


def refuse_unless_provable(url: str) -> None:
    """`BackupFailed` where no backup of a database could be proven, before one is written."""
    proofs.refuse_unless_provable(url)


def last_proven(url: str, folder: Path) -> str:
    """The name of the latest backup of a directory that was proven; empty for none."""
    return proofs.last_proven(url, [path.name for path in _backups_in(folder)])


def prove(url: str, file: Path, number: int) -> None:
    """Restore a backup beside the database and check it, then note that; `BackupFailed` where it is wrong."""
    with proofs.database_beside(url) as beside:
        _, wrong = restore(beside, file, ids_ahead=0)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BackupFailed(f"{file} was restored, and its rows contradict each other: {wrong[0]}{more}")
    proofs.note_proof(url, number)


def drop_older(folder: Path, keep: int, spared: tuple[str, ...] = ()) -> list[Path]:
    """Remove the oldest backups of a directory beyond as many as are kept, by the times in their names.

    None goes that is `spared`: others go instead of it.
    """
    ours = _backups_in(folder)
    excess = max(0, len(ours) - keep)
    dropped = [path for path in ours if path.name not in spared][:excess]
    for path in dropped:
        path.unlink()
    return dropped


def _backups_in(folder: Path) -> list[Path]:
    """Backups of a directory, the oldest first."""
    return sorted(path for path in folder.iterdir() if _OURS.fullmatch(path.name))
