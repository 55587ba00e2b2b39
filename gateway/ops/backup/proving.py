"""Whether a backup can be restored: it is, into a database made for it on the same server, and checked.

What was backed up and proven is noted in the database itself, so that metrics tell how old the last one is.
"""

from __future__ import annotations

from datetime import datetime

from gateway.errors import BackupFailed
from gateway.ops.backup.manifest import Manifest
from gateway.ops.backup.ports import Backup, Backups
from gateway.ops.backup.taking import restore
from persistence.schema import proofs


def note(url: str, backup: Backup, manifest: Manifest) -> int:
    """Note in the database that a backup of it was written; the number of the note."""
    taken_at = datetime.fromisoformat(manifest.taken_at)
    return proofs.note(url, proofs.Taken(backup.name, taken_at, manifest.bytes, manifest.sha256))


def refuse_unless_provable(url: str) -> None:
    """`BackupFailed` where no backup of a database could be proven, before one is written."""
    proofs.refuse_unless_provable(url)


def last_proven(url: str, there: Backups) -> tuple[str, ...]:
    """The name of the latest backup of a place that was proven, by the database, and by the place itself."""
    noted = proofs.last_proven(url, there.names())
    return tuple(filter(None, (noted, *(there.proven() or ())[-1:])))


def prove(url: str, there: Backups, backup: Backup, number: int) -> None:
    """Restore a backup beside the database and check it, then note that; `BackupFailed` where it is wrong."""
    with proofs.database_beside(url) as beside:
        _, wrong = restore(beside, backup, ids_ahead=0)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BackupFailed(
            f"{backup.address} was restored, and its rows contradict each other: {wrong[0]}{more}"
        )
    there.note_proof(backup.name)
    proofs.note_proof(url, number)


def drop_older(there: Backups, keep: int, spared: tuple[str, ...] = ()) -> list[str]:
    """Remove the oldest backups of a place beyond as many as are kept, by the times in their names.

    None goes that is `spared`: others go instead of it. The addresses of those that went.
    """
    ours = there.names()
    excess = max(0, len(ours) - keep)
    dropped = [name for name in ours if name not in spared][:excess]
    for name in dropped:
        there.remove(name)
    return [there.address(name) for name in dropped]
