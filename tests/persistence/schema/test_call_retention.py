"""The journal is kept as long as it is asked for, in whole months, and its proof looks at what is kept."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import permutations
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import errors
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.outbox import EventKind
from gateway.core.accounts.usage import SPANS, UsageQuery
from gateway.counters.redis.keys import partition_of
from gateway.errors import Unprocessable
from persistence import engine as engines
from persistence.ledger.usage_rollup import MODELS_A_DAY_MAX
from persistence.ledger.writer import LedgerWriter
from persistence.resources import usage
from persistence.schema import partitions
from persistence.schema.standing import ENSURE_PARTITIONS
from persistence.store import Store
from persistence.tables import metadata
from tests.connections import connected
from tests.in_turn import in_turn
from tests.persistence.migrated import BY_MONTH
from tests.persistence.scenario import Account, batch_of, broken, rows_of, settle_in
from tests.tree import ROOT

NOW = datetime.now(UTC)
DAY_MS = 86_400_000


def calls(url: str) -> int:
    with connected(url) as connection:
        return int(connection.execute("SELECT count(*) FROM call").fetchone()[0])  # type: ignore[index]  # one row


def sums(url: str) -> int:
    with connected(url) as connection:
        found = connection.execute("SELECT sum(requests) FROM usage_rollup WHERE span = 'month'").fetchone()
        return int(found[0])  # type: ignore[index]  # one row


async def test_months_that_ended_are_dropped_and_all_else_stays(
    migrated: str, pool: AsyncEngine, writer: LedgerWriter
) -> None:
    [account] = settle_in(migrated, 10**6)
    account.reset()
    now_ms = int(NOW.timestamp() * 1000)
    with connected(migrated) as connection:
        for days in (400, 100):
            at = NOW - timedelta(days=days)
            connection.execute("SELECT ensure_partitions(%s, 1)", (at,))
    for days in (400, 400, 100, 1, 0):
        account.at_ms = now_ms - days * DAY_MS
        account.consume(1, request_id=str(uuid.uuid4()), metadata=write_facts(CallFacts(total=1, units=1)))
    await writer.write(batch_of(account))
    assert (calls(migrated), await broken(migrated)) == (5, [])
    assert await partitions.drop_calls(pool, 36_500) == []
    assert calls(migrated) == 5
    dropped = await partitions.drop_calls(pool, 200)
    assert len(dropped) >= 1
    assert all(name.startswith("call_y") for name in dropped)
    assert (calls(migrated), sums(migrated), await broken(migrated)) == (3, 5, [])
    assert await partitions.drop_calls(pool, 200) == []
    await partitions.drop_calls(pool, 0)  # the last month is safe whatever is asked
    assert (calls(migrated), await broken(migrated)) == (2, [])
    # What is missing of a time that is kept is told.
    with connected(migrated) as connection:
        connection.execute("DELETE FROM call WHERE created_at > now() - interval '12 hours'")
    assert {one.invariant for one in await broken(migrated)} == {"usage_adds_up"}


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


async def test_what_lies_outside_of_the_months_is_dropped_too(
    migrated: str, pool: AsyncEngine, writer: LedgerWriter
) -> None:
    [account] = settle_in(migrated, 10**6)
    account.reset()
    account.at_ms -= 900 * DAY_MS
    account.consume(1, metadata=write_facts(CallFacts(total=1)))
    await writer.write(batch_of(account))
    assert calls(migrated) == 1
    await partitions.drop_calls(pool, 365)
    assert (calls(migrated), await broken(migrated)) == (0, [])


@in_turn(
    "asked",
    [
        "'call', NULL", "NULL, now()", "'token_ledger', now()", "'usage_rollup', now()",
        "'usage_rollup_day', now()", "'call; DROP TABLE call', now()",
    ],
)  # fmt: skip
def test_a_drop_of_anything_else_or_without_a_moment_is_refused(migrated: str, asked: str) -> None:
    with connected(migrated) as connection, pytest.raises(errors.InvalidParameterValue):
        connection.execute(f"SELECT drop_months({asked})")


# --- kept hours -------------------------------------------------------------------------
# Hours of the roll-ups are kept as long as it is asked for; longer spans stay, and every proof holds.


DAY, HOUR = timedelta(days=1), timedelta(hours=1)
TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
AGES = (400, 100, 100, 1, 0)
FACTS = CallFacts(model="m", total=7, cost=3, currency="USD")
DROPS = {"calls": partitions.drop_calls, "hours": partitions.drop_hours}
PEOPLE, TEAMS = ("user",), ("tenant",)


def opened(url: str) -> Account:
    """An account whose calls of some months ago have partitions of their own."""
    [account] = settle_in(url, 10**9)
    account.reset()
    with connected(url) as connection:
        connection.execute("SELECT ensure_partitions(%s, 1)", (NOW - 100 * DAY,))
    return account


def filled(url: str) -> Account:
    account = opened(url)
    for days in AGES:
        account.at_ms = int((NOW - days * DAY).timestamp() * 1000)
        account.consume(7, request_id=str(uuid.uuid4()), user="u", metadata=write_facts(FACTS))
    return account


def requests_of(url: str) -> dict[object, object]:
    return dict(rows_of(url, "SELECT span, sum(requests)::bigint FROM usage_rollup GROUP BY span"))


async def reported(
    pool: AsyncEngine, since: datetime, until: datetime, interval: str, groups: tuple[str, ...]
) -> int:
    """How many calls a report tells."""
    rows = await Store(pool, partition_of).used(UsageQuery(since, until, interval, groups, {}, 1_000))
    return sum(row["requests"] for row in rows)  # type: ignore[misc]  # numbers


@pytest.mark.parametrize("order", list(permutations(DROPS)))
async def test_every_proof_holds_in_each_order_and_longer_spans_stay(
    migrated: str, writer: LedgerWriter, pool: AsyncEngine, order: tuple[str, ...]
) -> None:
    await writer.write(batch_of(filled(migrated)))
    assert (requests_of(migrated), await broken(migrated)) == (dict.fromkeys(SPANS, 5), [])
    for what in order:
        assert await DROPS[what](pool, 36_500) == []
        dropped = await DROPS[what](pool, 40)
        assert {name[:-9] for name in dropped} == (
            {"call"} if what == "calls" else {"usage_rollup_hour", "usage_rollup_team_hour"}
        )
        assert await DROPS[what](pool, 40) == []
        assert await broken(migrated) == []
    kept = dict.fromkeys(SPANS, 5) | {"hour": 2, "team_hour": 2}
    assert requests_of(migrated) == kept
    # A call that comes late is in each span, and in no hour once the next drop is over.
    account = settle_in(migrated, 10**6)[0]
    account.reset()
    account.at_ms = int((NOW - 100 * DAY).timestamp() * 1000)
    account.consume(7, metadata=write_facts(FACTS))
    await writer.write(batch_of(account))
    assert await broken(migrated) == []
    await partitions.drop_hours(pool, 40)
    assert requests_of(migrated) == {
        span: count + (span not in ("hour", "team_hour")) for span, count in kept.items()
    }
    assert await broken(migrated) == []
    # What is missing of hours that are kept is told.
    with connected(migrated) as connection:
        connection.execute("DELETE FROM usage_rollup WHERE span = 'team_hour'")
    assert {one.invariant for one in await broken(migrated)} == {"usage_adds_up"}


@pytest.mark.parametrize("groups", [PEOPLE, TEAMS])
async def test_a_report_of_hours_that_are_gone_is_refused_and_every_other_is_right(
    migrated: str, writer: LedgerWriter, pool: AsyncEngine, groups: tuple[str, ...]
) -> None:
    await writer.write(batch_of(filled(migrated)))
    old = TODAY - 100 * DAY
    asked = [
        (since, until, interval)
        for since, until in (
            (old, TODAY + DAY), (old + HOUR, TODAY + DAY), (old - DAY, old + DAY), (old, old + 30 * HOUR),
            (old + HOUR, old + 3 * HOUR), (TODAY - DAY, TODAY + DAY), (TODAY - 23 * HOUR, TODAY + 25 * HOUR),
        )
        for interval in ("none", "hour", "day", "month")
    ]  # fmt: skip
    before = {one: await reported(pool, *one, groups) for one in asked}
    assert before[old, TODAY + DAY, "none"] == 4
    await partitions.drop_hours(pool, 40)
    for since, until, interval in asked:
        ends = {"interval": since} if interval == "hour" else {"from": since, "to": until}
        wrong = {
            name for name, at in ends.items() if (at.hour or name == "interval") and at < TODAY - 40 * DAY
        }
        if not wrong:
            assert await reported(pool, since, until, interval, groups) == before[since, until, interval]
            continue
        with pytest.raises(Unprocessable) as refused:
            await reported(pool, since, until, interval, groups)
        assert {name for name, _ in refused.value.errors} == wrong
        assert all("ask for whole days" in reason for _, reason in refused.value.errors)


async def test_the_first_hour_that_is_kept_is_told_and_the_one_before_is_not(
    migrated: str, writer: LedgerWriter, pool: AsyncEngine
) -> None:
    await writer.write(batch_of(filled(migrated)))
    await partitions.drop_hours(pool, 40)
    [(since,)] = rows_of(migrated, "SELECT DISTINCT since FROM kept_since")
    assert isinstance(since, datetime)
    assert await reported(pool, since, TODAY + DAY, "hour", TEAMS) == 2
    assert await reported(pool, since + HOUR, TODAY + DAY, "none", PEOPLE) == 2
    for end in ((since - HOUR, TODAY + DAY, "hour"), (since - DAY, since - HOUR, "day")):
        with pytest.raises(Unprocessable):
            await reported(pool, *end, TEAMS)
    # Whoever asks for fewer days, then for more, gets back nothing that is gone.
    await partitions.drop_hours(pool, 200)
    assert rows_of(migrated, "SELECT DISTINCT since FROM kept_since") == [(since,)]


async def test_hours_that_go_while_they_are_read_are_not_told_as_none(
    migrated: str, writer: LedgerWriter, pool: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writer.write(batch_of(filled(migrated)))
    read = usage._read_usage

    def slowly(*asked: Any) -> Any:
        for span in partitions.HOURS:
            rows_of(migrated, "SELECT drop_months(%s, now() - interval '40 days')", [span])
        return read(*asked)

    monkeypatch.setattr(usage, "_read_usage", slowly)
    with pytest.raises(Unprocessable):
        await reported(pool, TODAY - 100 * DAY, TODAY + DAY, "hour", TEAMS)


async def test_names_of_a_day_stay_while_its_calls_may_be_corrected_and_go_with_them(
    migrated: str, writer: LedgerWriter, pool: AsyncEngine
) -> None:
    account = opened(migrated)
    account.at_ms = int((NOW - 100 * DAY).timestamp() * 1000)
    request = str(uuid.uuid4())
    for number in range(MODELS_A_DAY_MAX):
        metadata = write_facts(msgspec.structs.replace(FACTS, model=f"made-up-{number:04}"))
        account.consume(7, metadata=metadata)
    account.consume(7, request_id=request, metadata=write_facts(msgspec.structs.replace(FACTS, model="zz")))
    await writer.write(batch_of(account))
    account.at_ms = int(NOW.timestamp() * 1000)
    account.consume(7, metadata=write_facts(FACTS))
    await writer.write(batch_of(account))

    names = "SELECT count(*) FROM usage_name"
    by_model = "SELECT model, requests, cost FROM usage_rollup WHERE span = 'month' ORDER BY 1"
    await partitions.drop_hours(pool, 40)
    assert rows_of(migrated, names) == [(MODELS_A_DAY_MAX + 1,)]

    def correct(cost: int) -> None:
        facts = write_facts(msgspec.structs.replace(FACTS, model="zz", cost=cost))
        account.consume(0, kind=EventKind.ADJUST, metadata=mark_as_correction(facts, request, "settled late"))

    # Hours are gone, and a correction still finds the row its call is in.
    correct(5)
    await writer.write(batch_of(account))
    told = rows_of(migrated, by_model)
    assert ("other", 1, 5) in told
    assert len(told) == MODELS_A_DAY_MAX + 2
    await partitions.drop_calls(pool, 40)
    assert rows_of(migrated, names) == [(1,)]
    correct(9)
    await writer.write(batch_of(account))
    assert rows_of(migrated, by_model) == told
    assert rows_of(migrated, names) == [(1,)]


# --- days -------------------------------------------------------------------------------
# A month's partition may itself have one a day: rows, indexes and refusals are the same.


AT = datetime(2031, 2, 10, tzinfo=UTC)
FORMS = r"""
SELECT substring(c.relname from '_y(\d{4}m\d{2})$'), c.relkind::text, count(*)::integer
  FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE c.relname ~ '_y2031m\d{2}$' AND c.relkind IN ('r', 'p') GROUP BY 1, 2 ORDER BY 1"""
# Indexes of days that belong to none of the month's, and those of months to none of the ledger's.
LOOSE = r"""
SELECT c.relname FROM pg_class AS t JOIN pg_index AS x ON x.indrelid = t.oid
  JOIN pg_class AS c ON c.oid = x.indexrelid
 WHERE t.relname ~ '_y2031m\d{2}' AND NOT c.relispartition"""
ROW = (
    "INSERT INTO token_ledger (tenant_id, transaction_type, amount, direction, created_at, epoch, seq, cycle)"
    " VALUES (1, 'consume', 1, 'OUT', %s, 1, %s, 1)"
)
EACH = len(BY_MONTH)


def made(connection: psycopg.Connection[Any], by: str, ahead: int = 1) -> int:
    """All that is to be made by a moment; how many months of ledgers were."""
    total = 0
    while new := len(connection.execute("SELECT ensure_partitions(%s, %s, %s)", [AT, ahead, by]).fetchall()):
        total += new
    return total


@pytest.fixture
def connection(cloned: str) -> Iterator[psycopg.Connection[Any]]:
    with connected(cloned, autocommit=True) as connection:
        yield connection


def test_what_asks_for_months_is_what_the_keeper_asks(connection: psycopg.Connection[Any]) -> None:
    values = {"months_ahead": 0, "by": "month"}
    assert connection.execute(ENSURE_PARTITIONS, values).fetchall() == []


def test_months_ahead_that_are_empty_change_their_form_and_no_other(
    cloned: str, connection: psycopg.Connection[Any]
) -> None:
    assert made(connection, "month") == 3 * EACH
    connection.execute(ROW, (datetime(2031, 2, 14, tzinfo=UTC), 1))
    assert made(connection, "day") == 2 * EACH - 1
    assert rows_of(cloned, FORMS) == [
        ("2031m01", "r", EACH), ("2031m02", "p", EACH - 1), ("2031m02", "r", 1),
        ("2031m03", "p", EACH),
    ]  # fmt: skip
    assert (made(connection, "day"), made(connection, "")) == (0, 0)
    assert connection.execute("SELECT ensure_partitions(%s, 1)", [AT]).fetchall() == []
    assert rows_of(cloned, LOOSE) == []
    connection.execute(ROW, (datetime(2031, 3, 14, tzinfo=UTC), 2))
    assert made(connection, "month") == 2 * EACH - 2
    assert rows_of(cloned, FORMS) == [
        ("2031m01", "r", EACH), ("2031m02", "r", EACH),
        ("2031m03", "p", 1), ("2031m03", "r", EACH - 1),
    ]  # fmt: skip
    assert rows_of(cloned, "SELECT tableoid::regclass::text FROM token_ledger ORDER BY seq") == [
        ("token_ledger_y2031m02",), ("token_ledger_y2031m03d14",)
    ]  # fmt: skip
    assert rows_of(cloned, LOOSE) == []


def test_a_day_begins_at_midnight_utc_and_is_append_only(
    cloned: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("SET timezone = 'Asia/Kolkata'")
    made(connection, "day", 0)
    for seq, moment in enumerate(
        (datetime(2031, 2, 10, 23, 59, 59, 999_000, UTC), datetime(2031, 2, 28, tzinfo=UTC)), 1
    ):
        connection.execute(ROW, (moment, seq))
    days = [f"token_ledger_y2031m02d{day}" for day in (10, 28)]
    found = rows_of(cloned, "SELECT tableoid::regclass::text FROM token_ledger ORDER BY seq")
    assert found == [(day,) for day in days]
    for table in (*days, "token_ledger_y2031m02"):
        for statement in (f"UPDATE {table} SET id = 7", f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with pytest.raises(errors.RestrictViolation, match="append-only"):
                connection.execute(statement.encode())
    with pytest.raises(errors.UniqueViolation):
        connection.execute(ROW, (datetime(2031, 2, 28, tzinfo=UTC), 2))


def test_months_are_made_while_others_write_and_read(
    cloned: str, connection: psycopg.Connection[Any]
) -> None:
    made(connection, "month", 0)
    with connected(cloned) as writer:
        writer.execute(ROW, (AT, 1))
        # A month ahead is made as ever. The present one, which it writes to, would have to be had alone.
        assert made(connection, "day") == 2 * EACH - 1
        writer.rollback()
    assert made(connection, "day") == 1


@pytest.mark.parametrize(("ahead", "by"), [(-1, "day"), (25, "day"), (1, "week"), (1, None)])
def test_what_is_no_number_of_months_or_no_form_is_refused(
    connection: psycopg.Connection[Any], ahead: int, by: str | None
) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        connection.execute("SELECT ensure_partitions(now(), %s, %s)", [ahead, by])


# --- what ends rows ---------------------------------------------------------------------
# The page for developers says of every table what it grows with, and what ends its rows.


PAGE = ROOT / "docs" / "internals" / "ledger.md"


def told() -> list[str]:
    """The tables that the page names, in its order."""
    section = PAGE.read_text().partition("#### What ends rows\n")[2].partition("\n\nWhom")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    return [name for _, tables, _ in rows for name in re.findall(r"`(\w+)`", tables)]


def test_each_table_is_told_once() -> None:
    assert sorted(told()) == sorted(table.name for table in metadata.sorted_tables)
