"""Events and reratings end once the calls that they explain are gone, and never before."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import errors

from persistence import engine as engines
from persistence.keeper.retention import forget_events, forget_reratings
from persistence.ledger.writer import LedgerWriter
from tests.persistence.explaining import rerated, told
from tests.persistence.scenario import batch_of, rows_of, settle_in

NOW = datetime.now(UTC)
OLD, SINCE, YOUNG = (NOW - timedelta(days=days) for days in (400, 200, 100))
LEDGERS = ("token_ledger", "credit_transaction", "feature_usage", "call")
EVENTS, RERATINGS = ("SELECT event_id FROM use_event ORDER BY id", "SELECT reason FROM rerating ORDER BY id")


def archived(url: str, *ledgers: str) -> None:
    for ledger in ledgers:
        rows_of(url, "INSERT INTO kept_since VALUES (%s, %s) RETURNING 1", [ledger, SINCE])


def named(url: str, statement: str) -> list[str]:
    return [name for (name,) in rows_of(url, statement)]


async def test_events_end_behind_their_calls(cloned: str) -> None:
    """Those of which something is here, or that a plan's end is proved by, stay."""
    [account] = settle_in(cloned, 100)
    account.at_ms = int(OLD.timestamp() * 1000)
    kept = account.consume(7).source
    writer = LedgerWriter(cloned)
    writer.write_now(batch_of(account))
    writer.close()
    with psycopg.connect(cloned) as connection:
        told(connection, kept, OLD, event_id="moved a ledger that is here", created_at=OLD)
        told(connection, str(uuid.uuid4()), OLD, event_id="late", created_at=OLD, late_tokens=1)
        told(connection, str(uuid.uuid4()), OLD, event_id="of a plan before", created_at=OLD, quota_tokens=1)
        told(connection, str(uuid.uuid4()), OLD, event_id="told when calls are here", created_at=YOUNG)
        for n in range(5):
            told(connection, str(uuid.uuid4()), OLD, event_id=f"gone {n}", created_at=OLD)
    every, pool = named(cloned, EVENTS), engines.create(cloned)
    archived(cloned, *LEDGERS[:3])
    assert await forget_events(pool, 1) == 0
    archived(cloned, LEDGERS[3])
    assert await forget_events(pool, 500) == 0
    assert named(cloned, EVENTS) == every
    assert await forget_events(pool, 1, at_once=2) == 5
    await pool.dispose()
    assert named(cloned, EVENTS) == every[:4]
    with psycopg.connect(cloned, autocommit=True) as connection:
        for event_id in every[1:4]:
            with pytest.raises(errors.RestrictViolation, match="stands: DELETE refused"):
                connection.execute("DELETE FROM use_event WHERE event_id = %s", (event_id,))
        with pytest.raises(errors.RestrictViolation, match="stands: UPDATE refused"):
            connection.execute("UPDATE use_event SET type = 'another'")


async def test_reratings_end_behind_their_calls(cloned: str) -> None:
    with psycopg.connect(cloned) as connection:
        for n in range(5):
            rerated(connection, f"gone {n}", OLD)
        rerated(connection, "of a call that is here", YOUNG)
    pool = engines.create(cloned)
    assert await forget_reratings(pool, 1) == 0
    archived(cloned, *LEDGERS)
    assert await forget_reratings(pool, 500) == 0
    assert await forget_reratings(pool, 1, at_once=2) == 5
    await pool.dispose()
    assert named(cloned, RERATINGS) == ["of a call that is here"]
    with psycopg.connect(cloned, autocommit=True) as connection:
        for refused in ("DELETE FROM rerating", "UPDATE rerating SET reason = 'another'"):
            with pytest.raises(errors.RestrictViolation, match="refused"):
                connection.execute(refused.encode())
