"""What a keeper drops of old months, as settings say; what ends behind them; what it tells of an archive."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from gateway.background.loops import Loop, call
from gateway.ops.archive.retention import Retention
from gateway.settings.settings import Settings
from persistence.archive.behind import behind
from persistence.engine import Engine
from persistence.keeper import budget_uses, explained, handovers, usage_feed
from persistence.schema import partitions


def housekeeping(engine: Engine, settings: Settings, log: Callable[..., None]) -> Loop:
    """Makes months ahead, and forgets what is not kept any more."""
    return Loop("partitions", 3_600.0, (
        call(lambda: partitions.ensure(engine, by=settings.partitions_by)),
        call(lambda: drop_old_months(engine, settings, log)),
        call(lambda: budget_uses.forget(engine)),
        call(lambda: usage_feed.forget(engine)),
        call(lambda: handovers.forget(engine, settings.stripe_events_keep_days)),
    ))  # fmt: skip


async def drop_old_months(engine: Engine, settings: Settings, log: Callable[..., None]) -> None:
    """Drop what is not kept any more, of calls, of hours, and of what explained them.

    A month of calls that has to stay is told.
    """

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
    if days := settings.events_keep_days:
        await explained.forget_events(engine, days)
    if days := settings.reratings_keep_days:
        await explained.forget_reratings(engine, days)


async def wait_for_archive(engine: Engine, settings: Settings) -> dict[str, object]:
    """For how long months should be in the archive and are not, by ledger, where there is one."""
    return await behind(engine, Retention.of(settings).due)
