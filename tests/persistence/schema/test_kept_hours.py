"""Hours of the roll-ups are kept as long as it is asked for; longer spans stay, and every proof holds."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import msgspec
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.outbox import CallFacts, EventKind, corrected, write_facts
from gateway.core.accounts.usage import SPANS, UsageQuery
from gateway.counters.redis.keys import partition_of
from gateway.errors import Unprocessable
from persistence import engine as engines
from persistence.ledger.rollup import MODELS_A_DAY_MAX
from persistence.ledger.writer import LedgerWriter
from persistence.resources import usage
from persistence.schema import partitions
from persistence.store import Store
from tests.persistence.scenario import Account, batch_of, broken, rows_of, settle_in

NOW = datetime.now(UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
AGES = (400, 100, 100, 1, 0)
FACTS = CallFacts(model="m", total=7, cost=3, currency="USD")
DROPS = {"calls": partitions.drop_calls, "hours": partitions.drop_hours}
PEOPLE, TEAMS = ("user",), ("tenant",)


@pytest.fixture
async def pool(migrated: str) -> AsyncIterator[AsyncEngine]:
    engine = engines.create(migrated)
    yield engine
    await engine.dispose()


def opened(url: str) -> Account:
    """An account whose calls of some months ago have partitions of their own."""
    [account] = settle_in(url, 10**9)
    account.reset()
    with psycopg.connect(url) as connection:
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
    with psycopg.connect(migrated) as connection:
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
    read = usage._used

    def slowly(*asked: Any) -> Any:
        for span in partitions.HOURS:
            rows_of(migrated, "SELECT drop_months(%s, now() - interval '40 days')", [span])
        return read(*asked)

    monkeypatch.setattr(usage, "_used", slowly)
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
        account.consume(0, kind=EventKind.ADJUST, metadata=corrected(facts, request, "settled late"))

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
