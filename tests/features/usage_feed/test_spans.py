"""A usage feed has what was used in its time, whatever comes first: its begin, its end, or the flush."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Actor, Command
from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.outbox import EventKind
from gateway.errors import Conflict
from gateway.features.usage_feed.events import Terms
from persistence.ledger.writer import LedgerWriter
from persistence.store import Store
from persistence.usage_feed import queue as usage_feed
from persistence.usage_feed.queue import FeedQueue, usage_feeds
from tests.connections import connected
from tests.features.usage_feed.fed import Fed, fed
from tests.persistence.billing.drawn import some
from tests.persistence.scenario import Account, batch_of, partition_of, rows_of, settle_in
from tests.waiting import eventually

FACTS = write_facts(CallFacts(model="m", status=200, total=3, counts=(3, 0, 0, 0, 0, 0, 0, 0, 0, 0)))
SEEN = b'{"estimated":true,"reclaimed":true,"model":"m"}'
NEWEST = "SELECT max(id) FROM usage_feed"
# By the rows of the journal alone: what each feed's time has.
WITHIN = """
SELECT f.id, c.request_id::text, c.tokens FROM call AS c
  JOIN usage_feed AS f ON c.created_at >= f.begun_at AND (f.ended_at IS NULL OR c.created_at < f.ended_at)
 WHERE c.organization_id = %s"""
ACTOR = Actor("t", "admin")
# A flush under way, and who waits for it.
HOLD = "SELECT pg_advisory_xact_lock(7800, 63)"
WAITS = """
SELECT FROM pg_locks WHERE classid = 7800 AND objid = 63 AND NOT granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
STEPS = st.one_of(
    st.tuples(st.just("use"), st.sampled_from([0, 0, 0, -400, 400])),
    st.tuples(st.just("event"), st.sampled_from([1_000, 60_000, 10_000_000])),
    *(st.tuples(st.just(each), st.just(0)) for each in ("flush", "turn", "late", "send")),
)


async def do(feed: Fed, verb: str, row_id: int | None = None) -> None:
    [(newest,)] = rows_of(feed.url, NEWEST)
    which = int(str(newest)) if row_id is None else row_id
    store = Store(feed.pool, partition_of)
    await store.write(Command("usage-feeds", verb, ACTOR, "test", lambda _: {}, which, {}))


async def turned(feed: Fed, turn: str) -> None:
    """Begin, end or drop a feed, however often that is to be tried; `first`: of a service never told."""

    async def once() -> bool:
        try:
            await (FeedQueue(feed.pool).begin(Terms("openmeter")) if turn == "first" else do(feed, turn))
        except Conflict as busy:
            return "try again" not in str(busy)
        return True

    await eventually(once)


class Spans:
    """Calls of one account, with feeds that begin and end beside."""

    def __init__(self, feed: Fed, writer: LedgerWriter) -> None:
        self.feed, self.writer = feed, writer
        [self.account] = settle_in(feed.url, 10**9)
        self.account.at_ms = self.now_ms()
        self.account.reset()
        self.reclaimed: list[str] = []
        self.told = set(feed.billing.events)

    @staticmethod
    def now_ms() -> int:
        return time.time_ns() // 1_000_000

    async def step(self, what: str, how: int) -> None:
        account = self.account
        if what == "use":
            # Redis has a clock of its own; it does not go back for one account.
            account.at_ms = max(account.at_ms, self.now_ms() + how)
            self.reclaimed.append(account.consume(5, request_id=str(uuid.uuid4()), metadata=SEEN).source)
        elif what == "event":
            used = write_facts(CallFacts(model="m", status=200, total=7, used_ms=self.now_ms() - how))
            account.consume(7, metadata=used)
        elif what == "flush":
            await self.writer.write(batch_of(account))
        elif what == "turn":
            [(is_open,)] = rows_of(self.feed.url, "SELECT count(*) FROM usage_feed WHERE ended_at IS NULL")
            await do(self.feed, "end" if is_open else "begin")
        elif what == "late" and self.reclaimed:
            request = self.reclaimed.pop(0)
            account.at_ms = max(account.at_ms, self.now_ms())
            more = mark_as_correction(FACTS, request, "settled late")
            account.consume(2, kind=EventKind.ADJUST, metadata=more)
        elif what == "send":
            await self.feed.drain()

    def agree(self) -> None:
        """Each feed took what is of its time, by name and to the token; nobody else did."""
        within = rows_of(self.feed.url, WITHIN, [self.account.organization_id])
        there = {name: event for name, event in self.feed.billing.events.items() if name not in self.told}
        uses = {name for name, event in there.items() if event["kind"] == "use"}
        assert uses == {f"{request}:use" for _, request, _ in within}
        tokens = sum(int(event["tokens"]) for event in there.values())
        assert tokens == sum(int(str(each)) for _, _, each in within)


MET = [
    ("use", 0), ("turn", 0), ("flush", 0), ("use", 0), ("turn", 0), ("flush", 0), ("use", 400), ("flush", 0),
    ("turn", 0), ("late", 0), ("flush", 0), ("turn", 0), ("use", 0), ("turn", 0), ("event", 60_000),
    ("late", 0),
]  # fmt: skip


def test_usage_feed_sends_exactly_the_use_between_begin_and_end_of_the_feed(
    migrated: str, writer: LedgerWriter
) -> None:
    @some(10)
    @given(steps=st.lists(STEPS, min_size=6, max_size=24))
    def live(steps: list[tuple[str, int]]) -> None:
        asyncio.run(_live(migrated, writer, steps))

    asyncio.run(_live(migrated, writer, MET))
    live()


async def _live(url: str, writer: LedgerWriter, steps: list[tuple[str, int]]) -> None:
    async with fed(url, since_long=False) as feed:
        if not rows_of(url, "SELECT FROM usage_feed WHERE ended_at IS NULL"):
            await do(feed, "begin")
        feed.pass_time()
        spans = Spans(feed, writer)
        for what, how in steps:
            await spans.step(what, how)
        await spans.step("flush", 0)
        await feed.drain()
        assert feed.out() == []
        spans.agree()


@pytest.mark.parametrize("turn", ["end", "begin", "first"])
async def test_opening_or_ending_a_usage_feed_waits_for_a_ledger_write_in_progress(
    migrated: str, turn: str
) -> None:
    async with fed(migrated) as feed:
        if turn != "end":
            await do(feed, "end")
        with connected(migrated) as flush:
            flush.execute(HOLD)
            turning = asyncio.ensure_future(turned(feed, turn))
            await eventually(lambda: rows_of(migrated, WAITS))
            [last] = flush.execute("SELECT clock_timestamp()").fetchall()
        await turning
        border = "SELECT coalesce(ended_at, begun_at) > %s FROM usage_feed ORDER BY id DESC LIMIT 1"
        assert rows_of(migrated, border, last) == [(True,)]


async def test_dropping_a_usage_feed_also_counts_events_of_a_ledger_write_in_progress(
    migrated: str, writer: LedgerWriter
) -> None:
    async with fed(migrated) as feed:
        await ended(feed, writer, 2)
        with connected(migrated) as flush:
            flush.execute(HOLD)
            dropping = asyncio.ensure_future(turned(feed, "drop"))
            await eventually(lambda: rows_of(migrated, WAITS))
            flush.execute(
                "INSERT INTO usage_outbox SELECT (jsonb_populate_record(u, jsonb_build_object("
                "'id', u.id + 1000000, 'name', u.name || ' too'))).* FROM usage_outbox AS u LIMIT 1"
            )
        await dropping
        assert rows_of(migrated, "SELECT dropped FROM usage_feed") == [(3,)]


async def test_slow_ledger_write_delays_usage_feed_changes_but_blocks_no_other_ledger_write(
    migrated: str,
) -> None:
    free = "SELECT bool_and(pg_try_advisory_xact_lock(7800, p)) FROM generate_series(0, 62) AS p"
    async with fed(migrated) as feed:
        with connected(migrated) as flush:
            flush.execute(HOLD)
            with pytest.raises(Conflict, match="try again"):
                await do(feed, "end")
            assert rows_of(migrated, free) == [(True,)]
        await turned(feed, "end")
        feed.terms = Terms("openmeter")
        with connected(migrated) as flush:
            flush.execute(HOLD)
            telling = asyncio.create_task(feed.loop().run())
            await eventually(lambda: feed.said)
        # Nobody has to start the keeper again.
        await eventually(lambda: rows_of(migrated, "SELECT FROM usage_feed WHERE ended_at IS NULL"))
        telling.cancel()
        await asyncio.wait([telling])
        assert [each["what"] for each in feed.said] == ["usage feed waits to begin"]
        assert feed.feed("service") == ("openmeter",)


async def test_call_stored_before_a_usage_feed_opens_is_dated_before_despite_a_clock_ahead(
    migrated: str, pool: AsyncEngine, writer: LedgerWriter
) -> None:
    """A call that was stored before the feed was there counts as used before, whatever its clock says."""
    [account] = settle_in(migrated, 10**9)
    account.reset()
    account.at_ms = Spans.now_ms() + 30_000
    account.consume(5)
    await writer.write(batch_of(account))
    assert await FeedQueue(pool).begin(Terms("lago"))
    [(before,)] = rows_of(
        migrated, "SELECT max(c.created_at) < min(f.begun_at) FROM call AS c, usage_feed AS f"
    )
    assert before


async def test_restarted_keeper_does_not_reopen_a_usage_feed_that_an_administrator_ended(
    migrated: str,
) -> None:
    async with fed(migrated) as feed:
        await do(feed, "end")
        assert not await feed.queue.begin(feed.terms)
        assert rows_of(migrated, "SELECT count(*) FROM usage_feed WHERE ended_at IS NULL") == [(0,)]
        # Another service was never told anything.
        assert await feed.queue.begin(Terms("openmeter"))
        assert feed.feed("service") == ("openmeter",)


def used(account: Account, count: int) -> None:
    account.at_ms = max(account.at_ms, Spans.now_ms())
    for _ in range(count):
        account.consume(5, metadata=FACTS)


async def begun(feed: Fed) -> None:
    """What is used from here on is of the open feed: calls know milliseconds."""
    [begun_ms] = feed.feed("(ceil(extract(epoch FROM begun_at) * 1000))::bigint")
    await eventually(lambda: Spans.now_ms() >= begun_ms)


async def ended(feed: Fed, writer: LedgerWriter, count: int) -> Account:
    """A feed that has ended before so many of its uses were sent."""
    [account] = settle_in(feed.url, 10**9)
    account.reset()
    used(account, count)
    await eventually(lambda: Spans.now_ms() > account.at_ms)
    await do(feed, "end")
    await writer.write(batch_of(account))
    return account


async def test_events_left_by_an_ended_usage_feed_are_sent_only_to_the_service_of_that_feed(
    migrated: str, writer: LedgerWriter
) -> None:
    async with fed(migrated) as feed:
        account = await ended(feed, writer, 5)
        assert await FeedQueue(feed.pool).begin(Terms("openmeter"))
        await begun(feed)
        used(account, 3)
        await writer.write(batch_of(account))
        await feed.drain()
        assert len(feed.billing.events) == 5
        assert rows_of(migrated, "SELECT service, sent FROM usage_feed ORDER BY id") == [
            ("lago", 5),
            ("openmeter", 0),
        ]
        assert len(feed.out()) == 3


async def test_merging_waiting_usage_events_by_hour_keeps_events_of_two_feeds_apart(
    migrated: str, writer: LedgerWriter
) -> None:
    async with fed(migrated, waiting_max=1) as feed:
        account = await ended(feed, writer, 1)
        await do(feed, "begin")
        await begun(feed)
        for _ in range(3):
            used(account, 2)
            await writer.write(batch_of(account))
        per_feed = "SELECT feed_id, kind, sum(requests)::int FROM usage_outbox GROUP BY 1, 2 ORDER BY 1, 2"
        first, second = (
            int(str(row[0])) for row in rows_of(migrated, "SELECT id FROM usage_feed ORDER BY id")
        )
        assert rows_of(migrated, per_feed) == [(first, "use", 1), (second, "folded", 4), (second, "use", 2)]
        await feed.drain()
        assert (feed.out(), feed.billing.total("requests")) == ([], 7)


async def test_dropped_usage_feed_sends_no_events_and_disappears_from_the_metrics(
    migrated: str, writer: LedgerWriter
) -> None:
    async with fed(migrated) as feed:
        account = await ended(feed, writer, 7)
        assert (await usage_feeds(feed.pool))["usage_feed_events"] == [("waiting", 7), ("failed", 0)]
        [(feed_id,)] = rows_of(migrated, NEWEST)
        await do(feed, "drop")
        counted = await usage_feeds(feed.pool)
        assert counted["usage_feed_events"] == [("waiting", 0), ("failed", 0)]
        assert counted["usage_feed_oldest_seconds"] == 0.0
        await feed.drain()
        assert feed.billing.events == {}
        # What becomes known of its time later is not told either.
        late = write_facts(CallFacts(model="m", status=200, total=7, used_ms=Spans.now_ms() - 5_000))
        account.consume(7, metadata=late)
        await writer.write(batch_of(account))
        assert len(feed.out()) == 7
        assert rows_of(migrated, "SELECT dropped FROM usage_feed WHERE id = %s", [feed_id]) == [(7,)]
        assert await usage_feed.forget(feed.pool, at_once=3) == 7
        assert feed.out() == []
        assert await usage_feed.forget(feed.pool) == 0


async def test_metrics_show_the_number_of_waiting_usage_events_even_beyond_the_counting_maximum(
    migrated: str, writer: LedgerWriter
) -> None:
    async with fed(migrated) as feed:
        [account] = settle_in(migrated, 10**9)
        account.reset()
        used(account, 9)
        await writer.write(batch_of(account))
        for most in (3, 9, 100):
            found = await usage_feeds(feed.pool, counted_max=most)
            assert found["usage_feed_events"] == [("waiting", 9), ("failed", 0)]
        assert found["usage_feed_oldest_seconds"] > 0.0  # type: ignore[operator]  # a float
