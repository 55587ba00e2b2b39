"""What a keeper drops of old months, as settings say, and what it tells of those that should be archived."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from gateway.ops.archive.retention import Retention
from gateway.settings.settings import Settings
from persistence.archive.behind import behind
from persistence.engine import Engine
from persistence.schema import partitions


async def drop_old_months(engine: Engine, settings: Settings, log: Callable[..., None]) -> None:
    """Drop calls and hours that are not kept any more; a month of calls that has to stay is told."""

    def stays(month: date, why: str) -> None:
        log("month of calls stays", month=f"{month:%Y-%m}", why=why, level="warning")

    dropped: list[str] = []
    if days := settings.calls_keep_days:
        archived = settings.archive_calls_after_months > 0
        dropped += await partitions.drop_calls(engine, days, are_archived=archived, stays=stays)
    if days := settings.usage_hours_keep_days:
        dropped += await partitions.drop_hours(engine, days)
    for month in dropped:
        log("month dropped", partition=month)


async def wait_for_archive(engine: Engine, settings: Settings) -> dict[str, object]:
    """For how long months should be in the archive and are not, by ledger, where there is one."""
    return await behind(engine, Retention.of(settings).due)
