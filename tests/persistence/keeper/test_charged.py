"""What of a call is charged, as a settlement that comes late asks: of its accounts, and of its budgets."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import errors
from sqlalchemy import TextClause, text

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.holds import ChargedAmounts, LateSettlement
from gateway.core.accounts.outbox import EventFlag, EventKind, EventNote
from gateway.core.model import Caller, Settlement
from gateway.core.times import AHEAD_MAX, DAY_MS, began, moment_of
from gateway.counters.redis.keys import partition_of
from gateway.http.protocol.request_ids import RequestIds
from persistence import engine as engines
from persistence.billing import amendments
from persistence.keeper import definitions
from persistence.keeper.forgetting import forget_events, forget_reratings
from persistence.keeper.retention import MONTHS_ALONE_MAX, SINCE_BEGAN, by_month, times_of
from persistence.keeper.sweeps import _CHARGED, Sweeps
from persistence.keeper.verification import _SETTLED, LedgerReader
from persistence.ledger import redrive, statements
from persistence.ledger.writer import LedgerWriter
from persistence.registry import SUBJECTS
from tests.builders import CHAT
from tests.connections import connected
from tests.databases import own_database
from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import act, customer
from tests.persistence.billing.test_early_use import BEGINS, BLOCKS
from tests.persistence.explaining import rerated, told
from tests.persistence.ledger.test_budget_moves import budget_of, moves, opened
from tests.persistence.scenario import Account, batch_of, document, rows_of, settle_in

TAKEN_BACK = {"note": int(EventNote.RECLAIMED), "metadata": b'{"estimated":true,"reclaimed":true}'}


MOVED = {"token_ledger", "credit_transaction", "feature_usage"}


@pytest.fixture(scope="module")
def years(postgres: str, template: str) -> Iterator[str]:
    """A database with the months of more than a year."""
    with own_database(postgres, f"years_{os.getpid()}", template) as url:
        rows_of(url, "SELECT ensure_partitions(%s, 1)", [datetime.now(UTC) - timedelta(days=400)])
        yield url


async def charged(url: str, account: Account, *requests: str) -> dict[str, ChargedAmounts]:
    caller = Caller(account.organization_id, account.tenant_id, 3, account.partition)
    late = [LateSettlement(b"1-0", Settlement(caller, each, "", CHAT, charge=True), 0) for each in requests]
    pool = engines.create(url)
    found = await Sweeps(pool).charged(late)
    await pool.dispose()
    return found


async def test_what_moved_budgets_alone_is_charged(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    told = write_facts(CallFacts(total=7, cost=5, currency="USD", status=200))
    settled = account.consume(None, **moves(budget), metadata=told)
    taken = account.consume(None, **moves(budget), **TAKEN_BACK)
    both = account.consume(7, **moves(budget), **TAKEN_BACK)
    freed = account.consume(None, **TAKEN_BACK)
    await writer.write(batch_of(account))
    asked = [settled.source, taken.source, both.source, freed.source, str(uuid.uuid4())]
    # What was taken back for nothing is not charged, nor is what nobody knows.
    assert await charged(migrated, account, *asked) == {
        settled.source: ChargedAmounts(7, quota_tokens=0, money=5, budget_tokens=7, requests=1),
        taken.source: ChargedAmounts(7, reclaimed=True, quota_tokens=0, money=5, budget_tokens=7, requests=1),
        both.source: ChargedAmounts(7, reclaimed=True, money=5, budget_tokens=7, requests=1),
    }


async def test_corrections_are_in_what_is_charged(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    taken = account.consume(None, **moves(budget), **TAKEN_BACK)
    await writer.write(batch_of(account))
    really = write_facts(CallFacts(total=9, cost=8, currency="USD", status=200))
    more = {**moves(budget, money=3), "metadata": mark_as_correction(really, taken.source, "late")}
    account.emit(EventKind.ADJUST, EventFlag(0), source=str(uuid.uuid4()), **more)
    await writer.write(batch_of(account))
    assert await charged(migrated, account, taken.source) == {
        taken.source: ChargedAmounts(9, quota_tokens=0, money=8, budget_tokens=9, requests=1)
    }


@pytest.mark.parametrize("statement", [_CHARGED, _SETTLED])
async def test_months_before_a_request_began_are_not_looked_at(cloned: str, statement: TextClause) -> None:
    """By the plan that PostgreSQL makes; where an id says no moment, all of them are."""
    now = datetime.now(UTC)
    rows_of(cloned, "SELECT ensure_partitions(%s, 1)", [now - timedelta(days=400)])
    new = RequestIds(os.urandom, time.time).next_id(0.0)
    pool = engines.create(cloned)
    looked_at = {}
    for request in (new, str(uuid.uuid4())):
        since = None if (moment := began(request)) is None else moment - AHEAD_MAX
        values = {"ids": [request], "refunds": [request], "since": since}
        async with pool.connect() as connection:
            found = await connection.execute(text(f"EXPLAIN {statement.text}"), values)
            looked_at[request] = set(re.findall(r"token_ledger_y\d{4}m\d{2}", "\n".join(found.scalars())))
    await pool.dispose()
    old = f"token_ledger_y{now - timedelta(days=400):%Ym%m}"
    every = looked_at.pop(next(other for other in looked_at if other != new))
    assert old in every
    assert f"token_ledger_y{now:%Ym%m}" in looked_at[new] < every - {old}


# Each statement that psycopg runs about the rows of requests, and the ledgers it reads.
OF_REQUESTS = {
    "charged": (statements.CHARGED, MOVED),
    "called": (redrive._CALLED, {"call"}),
    "known": (statements.KNOWN_CALLS, {"call"}),
    "sums": (statements.CALL_SUMS, {"call"}),
    "refund": (statements.REFUND_CALL, {"call"}),
    "amend": (statements.AMEND_CALL, {"call"}),
    "correct": (statements.CORRECT_CALL, {"call"}),
    "amended call": (amendments._CALL, {"call"}),
    "amended tokens": (amendments._TOKENS, {"token_ledger"}),
    "amended units": (amendments._UNITS, {"feature_usage"}),
}


@pytest.mark.parametrize("name", OF_REQUESTS)
def test_what_asks_for_one_request_opens_no_month_before_it(years: str, name: str) -> None:
    """By what PostgreSQL executed of its plan; where neither id nor event says a moment, it opens all."""
    statement, ledgers = OF_REQUESTS[name]
    now, opened = datetime.now(UTC), {}
    empty = dict.fromkeys(re.findall(r"%\((\w+)\)s", statement))
    new, event, other = RequestIds(os.urandom, time.time).next_id(0.0), *(str(uuid.uuid4()) for _ in "ab")
    for request in (new, event, other):
        asked = {"request": request, "request_id": request, "ids": [request], "more_units": False}
        with connected(years) as connection:
            if request == event:
                told(connection, event, now)
            values = {**empty, **asked, **times_of([request])}
            plan = connection.execute(f"EXPLAIN ANALYZE {statement}", values).fetchall()
        scans = "\n".join(line for (line,) in plan if "Scan" in line and "never executed" not in line)
        opened[request] = re.findall(r" on (\w+)_y(\d{4}m\d{2})\b", scans)
    then, today = f"{now - timedelta(days=400):%Ym%m}", f"{now:%Ym%m}"
    for ledger in ledgers:
        months = {when: {at for table, at in found if table == ledger} for when, found in opened.items()}
        assert {then, today} <= months[other]
        for request in (new, event):
            assert today in months[request]
            assert min(months[request]) >= f"{now - AHEAD_MAX:%Ym%m}"


def test_use_that_a_clock_of_redis_told_too_early_is_found(cloned: str) -> None:
    """Its rows are of before its event says that it was: the day is noted with them."""
    [account] = settle_in(cloned, 100)
    at = moment_of(account.at_ms)
    facts = CallFacts(total=7, used_ms=account.at_ms + 9 * DAY_MS)
    event = account.consume(7, metadata=write_facts(facts))
    writer = LedgerWriter(cloned)
    writer.write_now(batch_of(account))
    writer.close()
    asked = f"SELECT ({SINCE_BEGAN})::text"
    with connected(cloned) as connection:
        told(connection, event.source, at + timedelta(days=9))
        connection.execute("SET TIME ZONE 'UTC'")
        [(since,)] = connection.execute(asked.encode(), times_of([event.source]))
        assert datetime.fromisoformat(since) == at
        connection.execute("DELETE FROM clock_ahead")
        [(since,)] = connection.execute(asked.encode(), times_of([event.source]))
        assert datetime.fromisoformat(since) == at + timedelta(days=8)
        for ids in ([event.source, str(uuid.uuid4())], []):
            assert connection.execute(asked.encode(), times_of(ids)).fetchall() == [("-infinity",)]


def test_requests_are_looked_for_since_the_earliest_of_them() -> None:
    ids = [
        RequestIds(os.urandom, lambda at=at: float(at)).next_id(0.0) for at in (1_790_000_000, 1_780_000_000)
    ]
    since = datetime.fromtimestamp(1_780_000_000, UTC)
    days = [since.date(), datetime.fromtimestamp(1_790_000_000, UTC).date()]
    known = {"began": since - AHEAD_MAX, "began_on": days}
    other = str(uuid.uuid4())
    assert times_of(ids) == {**known, "timeless": []}
    assert times_of([*ids, other]) == {**known, "timeless": [other]}


LISTS = ("token-ledger", "credit-transactions", "feature-usage", "calls")


@pytest.mark.parametrize("name", LISTS)
async def test_a_list_of_one_request_looks_into_no_month_before_it(cloned: str, name: str) -> None:
    """Behind the plan that PostgreSQL made: what it never executed is a month that it did not open."""
    now = datetime.now(UTC)
    rows_of(cloned, "SELECT ensure_partitions(%s, 1)", [now - timedelta(days=400)])
    subject, pool = SUBJECTS[name], engines.create(cloned)
    opened_months = {}
    event = str(uuid.uuid4())
    with connected(cloned) as connection:
        told(connection, event, now)
    for request in (RequestIds(os.urandom, time.time).next_id(0.0), event, str(uuid.uuid4())):
        asked = subject.rows.where(subject.condition("request_id", uuid.UUID(request)))
        async with pool.connect() as connection:
            sql = asked.compile(connection.engine, compile_kwargs={"literal_binds": True})
            plan = await connection.scalars(text(f"EXPLAIN ANALYZE {str(sql).replace(':', chr(92) + ':')}"))
            lines = [line for line in plan if "never executed" not in line]
        months = re.findall(rf"{subject.table.name}_y(\d{{4}}m\d{{2}})\b", "\n".join(lines))
        opened_months[request] = set(months)
    await pool.dispose()
    old = f"{now - timedelta(days=400):%Ym%m}"
    *known, every = opened_months.values()
    assert {old, f"{now:%Ym%m}"} <= every
    for each in known:
        assert f"{now:%Ym%m}" in each < every - {old}


@example({"anywhere": None, **{str(year): datetime(year, 1, 1, tzinfo=UTC) for year in range(2020, 2027)}})
@given(st.dictionaries(st.uuids().map(str), st.none() | st.datetimes(timezones=st.just(UTC)), max_size=40))
def test_requests_are_looked_for_once_each_and_late_enough(found: dict[str, datetime | None]) -> None:
    groups = list(by_month(found))
    assert sorted(one for some, _ in groups for one in some) == sorted(found)
    assert len(groups) <= MONTHS_ALONE_MAX + 2
    for some, since in groups:
        moments = [found[one] for one in some]
        assert since == (None if None in moments else min(moment for moment in moments if moment))
        assert since is not None or set(moments) == {None}
    known = sorted({(at.year, at.month) for at in found.values() if at is not None}, reverse=True)
    for month, (some, _) in zip(known[:MONTHS_ALONE_MAX], groups, strict=False):
        mine = {one for one, at in found.items() if at is not None and (at.year, at.month) == month}
        assert set(some) == mine


async def test_a_gateway_whose_clock_is_ahead_hides_no_row(migrated: str, writer: LedgerWriter) -> None:
    """What is charged is found by an id of next year."""
    account = opened(migrated)
    account.at_ms = int(time.time() * 1000)
    ahead = RequestIds(os.urandom, lambda: time.time() + 365 * 86_400).next_id(0.0)
    account.consume(9, request_id=ahead)
    await writer.write(batch_of(account))
    assert (await charged(migrated, account, ahead))[ahead].tokens == 9
    assert await LedgerReader(engines.create(migrated), partition_of).settled({ahead: account.at_ms}) == [
        ahead
    ]


# --- explained --------------------------------------------------------------------------
# Events and reratings end once the calls that they explain are gone, and never before.


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
    with connected(cloned) as connection:
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
    with connected(cloned, autocommit=True) as connection:
        for event_id in every[1:4]:
            with pytest.raises(errors.RestrictViolation, match="stands: DELETE refused"):
                connection.execute("DELETE FROM use_event WHERE event_id = %s", (event_id,))
        with pytest.raises(errors.RestrictViolation, match="stands: UPDATE refused"):
            connection.execute("UPDATE use_event SET type = 'another'")


async def test_reratings_end_behind_their_calls(cloned: str) -> None:
    with connected(cloned) as connection:
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
    with connected(cloned, autocommit=True) as connection:
        for refused in ("DELETE FROM rerating", "UPDATE rerating SET reason = 'another'"):
            with pytest.raises(errors.RestrictViolation, match="refused"):
                connection.execute(refused.encode())


# --- definitions ------------------------------------------------------------------------
# What the counters are told of accounts is what the ledgers have, and not what callers write.


__all__ = ["april"]


async def forgives(april: April, tenant_id: int) -> bool:
    async with april.pool.connect() as connection:
        [found] = await definitions.tenants(connection, "t.id = :id", {"id": tenant_id})
    return found.forgives


async def test_only_a_change_of_plan_says_that_the_next_reset_forgives_debt(april: April) -> None:
    carries = BLOCKS | {"overage_policy": "carry"}
    small = await plan(april, "Small", "1.00", 1_000, **carries)
    ids = await customer(april, small, BEGINS, None)
    await april.on(at(4, 1))
    request_id = str(uuid.uuid4())
    april.account.consume(3_000, request_id=request_id)
    # A settlement that comes late says what its caller said.
    said = document(corrects=request_id, reason="settled late", forgives=1)
    april.account.consume(5, kind=EventKind.ADJUST, metadata=said)
    april.flush()
    assert not await forgives(april, ids["tenant"])
    blocks = await plan(april, "Blocks", "1.00", 500, **BLOCKS)
    await act(april, ids, "change", plan_id=blocks, when="now")
    await act(april, ids, "change", plan_id=small, when="now")
    assert await forgives(april, ids["tenant"])
