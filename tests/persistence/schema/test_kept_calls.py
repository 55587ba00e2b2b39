"""The journal is kept as long as it is asked for, in whole months, and its proof looks at what is kept."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from psycopg import errors

from gateway.core.accounts.outbox import CallFacts, write_facts
from persistence import engine as engines
from persistence.ledger.writer import LedgerWriter
from persistence.schema import partitions
from tests.persistence.scenario import batch_of, broken, rows_of, settle_in

NOW = datetime.now(UTC)
DAY_MS = 86_400_000


def calls(url: str) -> int:
    with psycopg.connect(url) as connection:
        return int(connection.execute("SELECT count(*) FROM call").fetchone()[0])  # type: ignore[index]  # one row


def sums(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT sum(requests) FROM usage_rollup WHERE span = 'month'").fetchone()
        return int(found[0])  # type: ignore[index]  # one row


async def test_months_that_ended_are_dropped_and_all_else_stays(migrated: str, writer: LedgerWriter) -> None:
    engine = engines.create(migrated)
    [account] = settle_in(migrated, 10**6)
    account.reset()
    now_ms = int(NOW.timestamp() * 1000)
    with psycopg.connect(migrated) as connection:
        for days in (400, 100):
            at = NOW - timedelta(days=days)
            connection.execute("SELECT ensure_partitions(%s, 1)", (at,))
    for days in (400, 400, 100, 1, 0):
        account.at_ms = now_ms - days * DAY_MS
        account.consume(1, request_id=str(uuid.uuid4()), metadata=write_facts(CallFacts(total=1, units=1)))
    await writer.write(batch_of(account))
    assert (calls(migrated), await broken(migrated)) == (5, [])
    assert await partitions.drop_calls(engine, 36_500) == []
    assert calls(migrated) == 5
    dropped = await partitions.drop_calls(engine, 200)
    assert len(dropped) >= 1
    assert all(name.startswith("call_y") for name in dropped)
    assert (calls(migrated), sums(migrated), await broken(migrated)) == (3, 5, [])
    assert await partitions.drop_calls(engine, 200) == []
    await partitions.drop_calls(engine, 0)  # the last month is safe whatever is asked
    assert (calls(migrated), await broken(migrated)) == (2, [])
    # What is missing of a time that is kept is told.
    with psycopg.connect(migrated) as connection:
        connection.execute("DELETE FROM call WHERE created_at > now() - interval '12 hours'")
    assert {one.invariant for one in await broken(migrated)} == {"usage_adds_up"}
    await engine.dispose()


DRAFT = """
INSERT INTO invoice (organization_id, period_start, period_end, currency, status)
SELECT id, %(from)s, %(from)s::date + 1, 'USD', 'draft' FROM organization ORDER BY id LIMIT 1 RETURNING id"""
IN_ARCHIVE = """
INSERT INTO archived_month (ledger, month, url, file, rows, kept, bytes, sha256)
VALUES ('call', %s, 'x', 'y', 0, 0, 0, 'z') RETURNING 1"""


async def test_a_month_that_is_not_billed_stays_and_so_does_what_no_archive_has(
    migrated: str, writer: LedgerWriter
) -> None:
    engine, told = engines.create(migrated), list[tuple[date, str]]()
    [account] = settle_in(migrated, 10**6)
    account.reset()
    ends = [first_of_month(NOW - timedelta(days=days)) - timedelta(days=1) for days in (400, 300, 200)]
    for at in ends:
        rows_of(migrated, "SELECT ensure_partitions(%s, 0)", [at])
        account.at_ms = int(at.timestamp() * 1000)
        account.consume(1, metadata=write_facts(CallFacts(total=1, units=1)))
    await writer.write(batch_of(account))
    [(draft,)] = rows_of(migrated, DRAFT, {"from": ends[1].date()})

    async def dropped(*, are_archived: bool) -> list[str]:
        told.clear()
        return await partitions.drop_calls(
            engine, 100, are_archived=are_archived, stays=lambda *said: told.append(said)
        )

    assert f"call_y{ends[0]:%Ym%m}" in await dropped(are_archived=True)
    why = f"invoice {draft} is a draft of an invoice: from {ends[1].date()}"
    assert told == [(ends[1].date().replace(day=1), why)]
    assert (calls(migrated), await dropped(are_archived=False)) == (2, [])
    rows_of(migrated, "DELETE FROM invoice WHERE id = %s RETURNING 1", [draft])
    # Once a month of calls was archived, the others wait for the archive as long as settings have it so.
    rows_of(migrated, IN_ARCHIVE, [ends[0].date().replace(day=1)])
    assert await dropped(are_archived=True) == []
    assert [why for _, why in told] == ["it is in no archive, and earlier ones are"]
    assert calls(migrated) == 2
    assert {f"call_y{at:%Ym%m}" for at in ends[1:]} <= set(await dropped(are_archived=False))
    assert (calls(migrated), told, await broken(migrated)) == (0, [], [])
    await engine.dispose()


def first_of_month(at: datetime) -> datetime:
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


async def test_what_lies_outside_of_the_months_is_dropped_too(migrated: str, writer: LedgerWriter) -> None:
    engine = engines.create(migrated)
    [account] = settle_in(migrated, 10**6)
    account.reset()
    account.at_ms -= 900 * DAY_MS
    account.consume(1, metadata=write_facts(CallFacts(total=1)))
    await writer.write(batch_of(account))
    assert calls(migrated) == 1
    await partitions.drop_calls(engine, 365)
    assert (calls(migrated), await broken(migrated)) == (0, [])
    await engine.dispose()


@pytest.mark.parametrize(
    "asked",
    [
        "'call', NULL", "NULL, now()", "'token_ledger', now()", "'usage_rollup', now()",
        "'usage_rollup_day', now()", "'call; DROP TABLE call', now()",
    ],
)  # fmt: skip
def test_a_drop_of_anything_else_or_without_a_moment_is_refused(migrated: str, asked: str) -> None:
    with psycopg.connect(migrated) as connection, pytest.raises(errors.InvalidParameterValue):
        connection.execute(f"SELECT drop_months({asked})")
