"""A keeper drops what its settings keep for some time, and nothing where they keep it for ever."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from gateway.run.keeper import housekeeping
from gateway.settings.settings import Settings
from persistence import engine as engines
from tests.connections import connected
from tests.persistence.explaining import rerated, told
from tests.persistence.migrated import migrated, shared, template
from tests.persistence.scenario import rows_of

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
    found = "SELECT ledger FROM kept_since"
    await kept_until(lambda: {name for (name,) in rows_of(migrated, found)} == dropped, migrated, **keep)


@pytest.mark.parametrize("ended", ["use_event", "rerating"])
async def test_what_explained_calls_that_are_gone_ends(migrated: str, ended: str) -> None:
    at = datetime.now(UTC) - timedelta(days=50)
    for ledger in ("token_ledger", "credit_transaction", "feature_usage", "call"):
        rows_of(migrated, "INSERT INTO kept_since VALUES (%s, now()) RETURNING 1", [ledger])
    with connected(migrated) as connection:
        told(connection, str(uuid4()), at, created_at=at)
        rerated(connection, "a price", at)
    both = "SELECT 'use_event' FROM use_event UNION ALL SELECT 'rerating' FROM rerating"
    setting = {"use_event": "events_keep_days", "rerating": "reratings_keep_days"}[ended]
    other = {"use_event": "rerating", "rerating": "use_event"}[ended]
    await kept_until(lambda: rows_of(migrated, both) == [(other,)], migrated, **{setting: 40})


async def kept_until(is_so: Callable[[], bool], url: str, **keep: int) -> None:
    """Have a keeper of these settings look after what is old, once."""
    engine = engines.create(url)
    try:
        await housekeeping(engine, Settings(database_url=url, **keep), lambda *_, **__: None).turn()
        assert is_so()
    finally:
        await engine.dispose()
