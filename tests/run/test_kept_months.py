"""A keeper drops what its settings keep for some time, and nothing where they keep it for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from gateway.run.keeper import Keeper
from gateway.settings.settings import Settings
from tests.persistence.migrated import migrated, shared, template
from tests.persistence.scenario import rows_of
from tests.waiting import eventually

__all__ = ["migrated", "shared", "template"]
SPANS = {"usage_rollup_hour", "usage_rollup_team_hour"}


@pytest.mark.parametrize(
    ("keep", "dropped"),
    [
        ({"calls_keep_days": 40}, {"call"}),
        ({"usage_hours_keep_days": 40}, SPANS),
        ({"calls_keep_days": 40, "usage_hours_keep_days": 500}, {"call", *SPANS}),
    ],
)
async def test_what_is_kept_for_some_time_is_dropped(
    migrated: str, keep: dict[str, int], dropped: set[str]
) -> None:
    keeper = Keeper(Settings(database_url=migrated, redis_url="redis://127.0.0.1:1/0", **keep))
    running = asyncio.create_task(keeper._keep_partitions())
    found = "SELECT ledger FROM kept_since"
    try:
        await eventually(lambda: {name for (name,) in rows_of(migrated, found)} == dropped)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await keeper._engine.dispose()
