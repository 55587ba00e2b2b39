"""Backup: everything PostgreSQL holds, in a file or a bucket; restore, and the proof that restoring works."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gateway.features.record import Feature, commands

if TYPE_CHECKING:
    from gateway.run.keeper_parts import KeeperParts, Work


def _work(parts: KeeperParts) -> Work:
    from gateway.run.keeper_parts import Work  # of keepers alone
    from persistence.backup import backed_up

    return Work(gauges=(partial(backed_up, parts.engine),))


FEATURE = Feature(
    name="backup",
    tables=("backup_run",),
    metrics=(
        ("backup_timestamp_seconds", "gauge", "When the last backup was taken that is noted.", ()),
        ("backup_missing_seconds", "gauge", "For how long there is data, and no backup was ever taken.", ()),
        ("backup_proof_timestamp_seconds", "gauge", "When a backup was last restored and found right.", ()),
    ),
    commands=commands("gateway.features.backup.command:backup", "gateway.features.backup.command:restore"),
    work=_work,
)
