"""Archive: closed months of the ledgers as Parquet files, and out of PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from gateway.features.archive.settings import ArchiveSettings
from gateway.features.record import Feature, commands, load

if TYPE_CHECKING:
    from gateway.ops.doctor_redis import Finding
    from gateway.run.keeper_parts import KeeperParts, Work
    from gateway.settings.settings import Settings


def _work(parts: KeeperParts) -> Work:
    from gateway.features.archive.retention import Retention  # of keepers alone
    from gateway.run.keeper_parts import Work
    from persistence.archive.months import behind

    return Work(gauges=(partial(behind, parts.engine, Retention.of(parts.settings).due),))


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    from gateway.features.archive.outside import months_findings  # of the doctor alone
    from gateway.ops.doctor import listed  # as above

    if not settings.database_url:
        return
    for finding in await listed("postgresql", months_findings, settings.database_url):
        yield finding


FEATURE = Feature(
    name="archive",
    tables=("archive_identity", "archived_month", "archived_run"),
    settings=ArchiveSettings,
    archives_calls=lambda settings: settings.select(ArchiveSettings).archive_calls_after_months > 0,
    metrics=(
        ("archive_behind_seconds", "gauge", "For how long a month should be archived.", ("ledger",)),
    ),
    commands=commands("gateway.features.archive.command:archive"),
    list_sources=lambda: (load("gateway.features.archive.lists:SOURCE"),),
    archived_calls=lambda: load("gateway.features.archive.reading:archived_calls"),
    work=_work,
    findings=_findings,
)  # fmt: skip
