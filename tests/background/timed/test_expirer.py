"""Credits expire when everything that happened before their moment is stored, not earlier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import cast

import pytest

from gateway.background.loops import Isolation, Loop
from gateway.background.timed.invoicing import Claim, Invoicing
from gateway.core.accounts.outbox import EventKind
from gateway.core.billing.allocation import ExpiredGrant
from gateway.core.billing.invoice_schedule import (
    CONFLICT,
    COUNTERS,
    INCOMPLETE,
    NOT_AGREED,
    TOOK_TOO_LONG,
    DueInvoice,
    ScheduledResult,
    SkipReason,
)
from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.recovery import AccountHead
from gateway.counters.keeper.verification import KeeperCounters
from gateway.errors import (
    Conflict,
    CountersUnavailable,
    StoreTimeout,
    StoreUnavailable,
    TollkeeperError,
    Unprocessable,
)
from gateway.run.expirer import expirer
from gateway.run.timed_loops import month_ends
from persistence.billing.credit_balances import Allocations
from persistence.ledger.checkpoints import Checkpoints
from tests.background.backend import Backend, backend_at
from tests.builders import World


class FakeLedger:
    """One organization (1) with two pages to allocate and one addition to expire."""

    def __init__(self) -> None:
        self.pages = 2
        self.waiting = [ExpiredGrant(5, 1)]
        self.allocated = 0
        self.asked: list[tuple[int, int]] = []

    async def behind(self, count: int) -> Sequence[int]:
        return [1] if self.pages else []

    async def allocate(self, organization_id: int) -> bool:
        self.pages -= 1
        self.allocated += 10
        return self.pages == 0

    async def expired(self, now_ms: int, count: int) -> Sequence[ExpiredGrant]:
        return self.waiting if now_ms >= 1_000 else []

    async def expire(self, expired: ExpiredGrant, partition: int, seq: int) -> bool:
        self.asked.append((partition, seq))
        if self.allocated < seq:
            return False
        self.waiting = []
        return True


class FakeCounters:
    """A clock and one account."""

    def __init__(self) -> None:
        self.at_ms = 999
        self.head: AccountHead | None = AccountHead(20, 5)

    async def now_ms(self) -> int:
        return self.at_ms

    async def account_heads(self, owners: Sequence[Owner]) -> Mapping[str, AccountHead | None]:
        return {"credits:1": self.head, "spend:1": None}


def loop(ledger: FakeLedger, counters: FakeCounters) -> Loop:
    return expirer(cast("Allocations", ledger), cast("KeeperCounters", counters), lambda _: 7)


async def test_nothing_expires_before_its_moment_by_the_counters_clock() -> None:
    ledger, counters = FakeLedger(), FakeCounters()
    await loop(ledger, counters).turn()
    assert (ledger.asked, ledger.allocated) == ([], 20)


async def test_the_rest_is_taken_once_the_account_is_allocated_as_far_as_it_went() -> None:
    ledger, counters = FakeLedger(), FakeCounters()
    counters.at_ms, counters.head = 1_000, AccountHead(30, 5)
    await loop(ledger, counters).turn()
    assert ledger.waiting
    ledger.pages = 1
    await loop(ledger, counters).turn()
    assert (ledger.asked, ledger.waiting) == ([(7, 30), (7, 30)], [])


async def test_an_account_the_counters_do_not_know_waits() -> None:
    ledger, counters = FakeLedger(), FakeCounters()
    counters.at_ms, counters.head = 1_000, None
    await loop(ledger, counters).turn()
    assert ledger.asked == []


# --- sweeper ----------------------------------------------------------------------------
# The sweeper: tenants nobody calls are reset on time, once.


DAY_MS = 86_400_000


async def make_due(backend: Backend, *worlds: World) -> None:
    """As on the next morning: the boundary is past, in the counters and in the flushed quota."""
    for world in worlds:
        boundary = world.now_ms() // DAY_MS * DAY_MS
        world.put_tenant(next_reset=boundary)
        backend.rows(
            "update tenant_quota set next_reset_at = to_timestamp(%s) where tenant_id = %s returning 1",
            boundary / 1000,
            world.caller.tenant_id,
        )


async def test_idle_tenants_are_reset_with_a_row(backend: Backend) -> None:
    worlds = [await backend.settle_in(100, reset_interval="daily") for _ in range(3)]
    for world in worlds:
        world.reserve(need=1).settle(tokens=130)
    await backend.flush()
    await make_due(backend, *worlds[:2])
    assert await backend.sweeper.turn() == 2
    assert [world.tenant.remaining for world in worlds] == [100, 100, -30]
    await backend.flush()
    assert await backend.sweeper.turn() == 0
    for world in worlds[:2]:
        assert backend.ledger(world.caller.tenant_id)[-1] == (3, "reset", 130, 100)
    quota = backend.rows("select tokens_used, is_blocked, cycle from tenant_quota order by tenant_id")
    assert [tuple(row.values()) for row in quota] == [(0, False, 2), (0, False, 2), (130, True, 1)]


async def test_sweeping_before_the_reset_is_flushed_resets_once(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend, backend_at(valkey, migrated) as other:
        world = await backend.settle_in(100, reset_interval="daily")
        await backend.flush()
        await make_due(backend, world)
        ran = await asyncio.gather(*(one.sweeper.turn() for one in (backend, other, backend, other)))
        assert sum(ran) == 1
        assert [event.kind for event in world.events()] == [EventKind.RESET]


async def test_a_tenant_that_was_called_is_not_reset_again(backend: Backend) -> None:
    world = await backend.settle_in(100, reset_interval="daily")
    await backend.flush()
    await make_due(backend, world)
    world.reserve(need=1).settle(tokens=1)
    assert await backend.sweeper.turn() == 0
    assert world.tenant.cycle == 2


# --- checkpoints ------------------------------------------------------------------------
# Everybody's months are closed once, in pages, an hour after they are over.


class Closed:
    """Each organization has one checkpoint to make for each month; one fails once."""

    def __init__(self, *ids: int, fails_at: int = 0) -> None:
        self.ids = sorted(ids)
        self.fails_at = fails_at
        self.done: list[tuple[int, date]] = []

    async def after(self, organization_id: int, count: int) -> Sequence[int]:
        return [id_ for id_ in self.ids if id_ > organization_id][:count]

    async def close_months(self, organizations: Sequence[int], open_month: date) -> int:
        if self.fails_at in organizations:
            self.fails_at = 0
            raise StoreUnavailable
        fresh = [(id_, open_month) for id_ in organizations if (id_, open_month) not in self.done]
        self.done += fresh
        return len(fresh)


def ends_of(closed: Closed, clock: Callable[[], datetime], page: int = 100) -> Loop:
    return month_ends(cast("Checkpoints", closed), clock, page)


async def test_everybody_once_a_month() -> None:
    closed, now = Closed(5, 3, 9, 4, 1), [datetime(2026, 3, 31, 23, 59, tzinfo=UTC)]
    ends = ends_of(closed, lambda: now[0], 2)
    assert (await ends.turn(), await ends.turn()) == (5, 0)
    # Of the month's last minutes something may wait yet.
    now[0] = datetime(2026, 4, 1, 0, 59, tzinfo=UTC)
    closed.ids.append(12)
    assert await ends.turn() == 0
    now[0] = datetime(2026, 4, 1, 1, tzinfo=UTC)
    assert await ends.turn() == 6
    assert [id_ for id_, month in closed.done if month == date(2026, 4, 1)] == [1, 3, 4, 5, 9, 12]


async def test_a_turn_that_fails_is_made_again() -> None:
    closed = Closed(1, 2, 3, fails_at=2)
    ends = ends_of(closed, lambda: datetime(2026, 4, 2, tzinfo=UTC), 1)
    with pytest.raises(StoreUnavailable):
        await ends.turn()
    assert await ends.turn() == 2
    assert sorted(id_ for id_, _ in closed.done) == [1, 2, 3]


async def test_months_end_for_all_others_and_who_was_left_is_looked_at_again() -> None:
    class Stuck(Closed):
        async def close_months(self, organizations: Sequence[int], open_month: date) -> int:
            if 2 in organizations:
                raise KeyError
            return await super().close_months(organizations, open_month)

    closed, isolation = Stuck(1, 2, 3), Isolation()
    ends = ends_of(closed, lambda: datetime(2026, 4, 2, tzinfo=UTC))
    assert [await ends.turn(isolation) for _ in range(2)] == [2, 0]
    assert isolation.figures() == {"loop_failures": [["checkpoints", "item", 2]]}


# --- invoicing --------------------------------------------------------------------------
# What is due is made in batches of a partition: one that fails stops no other, and is told why.


MONTH = (date(2026, 4, 1), date(2026, 5, 1))
TORN = SkipReason(NOT_AGREED, "The accounts do not agree.")


class Books:
    """Organizations with an invoice due; of some the accounts do not agree, some are refused."""

    def __init__(
        self, *ids: int, torn: frozenset[int] = frozenset(), refused: frozenset[int] = frozenset()
    ) -> None:
        self.ids, self.torn, self.refused = ids, torn, refused
        self.made: list[list[int]] = []
        self.closed: list[int] = []
        self.left: dict[int, SkipReason | None] = {}
        self.claimed: set[int] = set()
        self.counters_away = False
        self.refusal: TollkeeperError = Conflict()

    async def invoices_due(self, after: int, count: int, *, finalize: bool) -> Sequence[DueInvoice]:
        page = [id_ for id_ in self.ids if id_ > after][:5]
        return [DueInvoice(id_, None, *MONTH, None, finalize=finalize, partition=id_ % 2) for id_ in page]

    @asynccontextmanager
    async def claims(self) -> AsyncIterator[Claim]:
        async def claim(partition: int) -> bool:
            return partition not in self.claimed

        yield claim

    async def still_due(self, organization_ids: Sequence[int], *, finalize: bool) -> Sequence[DueInvoice]:
        done = {id_ for some in self.made for id_ in some}
        return [
            DueInvoice(id_, None, *MONTH, None, finalize=finalize)
            for id_ in organization_ids
            if id_ not in done
        ]

    async def close_all(self, organization_ids: Sequence[int]) -> Mapping[int, SkipReason]:
        if self.counters_away:
            raise CountersUnavailable
        self.closed += organization_ids
        return {id_: TORN for id_ in organization_ids if id_ in self.torn}

    async def make_invoices(self, organization_ids: Sequence[int], *, finalize: bool) -> ScheduledResult:
        if self.refused.intersection(organization_ids):
            raise self.refusal
        self.made.append(list(organization_ids))
        return ScheduledResult(organization_ids, {})

    async def leave_invoices(self, left: Mapping[int, SkipReason | None]) -> None:
        self.left |= left

    async def clear_skipped(self, count: int, *, finalize: bool) -> None:
        due = {each.organization_id for each in await self.still_due(self.ids, finalize=finalize)}
        self.left |= dict.fromkeys(self.left.keys() - due)


def invoicing(books: Books, *, finalize: bool = True) -> Invoicing:
    return Invoicing(
        books, books, lambda *_, **__: None, finalize=finalize, at_once=2, organizations_a_batch=3
    )


async def test_one_that_is_left_stops_no_other_and_says_why() -> None:
    books = Books(1, 2, 3, 4, 5, torn=frozenset({2}))
    assert await invoicing(books).turn() == (4, 1)
    assert sorted(books.made) == [[1, 3, 5], [4]]
    assert books.left == {1: None, 2: TORN, 3: None, 4: None, 5: None}


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(Conflict("PostgreSQL refuses one of them."), CONFLICT), (StoreTimeout(), TOOK_TOO_LONG)],
)
async def test_one_that_makes_postgresql_refuse_a_batch_is_left_alone(
    refusal: TollkeeperError, reason: str
) -> None:
    books = Books(1, 3, 5, 7, refused=frozenset({3}))
    books.refusal = refusal
    assert await invoicing(books).turn() == (3, 1)
    assert sorted(books.made) == [[1], [5], [7]]
    assert books.left[3] == SkipReason(reason, str(refusal))


async def test_a_store_that_is_away_ends_the_turn() -> None:
    books = Books(1, 3, refused=frozenset({3}))
    books.refusal = StoreUnavailable()
    with pytest.raises(ExceptionGroup):
        await invoicing(books).turn()
    assert (books.made, books.left) == ([], {})


async def test_batches_are_of_one_partition_and_no_longer_than_they_may_be() -> None:
    books = Books(*range(1, 12))
    assert await invoicing(books).turn() == (11, 0)
    assert max(map(len, books.made)) == 3
    assert all(len({id_ % 2 for id_ in some}) == 1 for some in books.made)


async def test_what_another_keeper_has_claimed_is_left_to_it() -> None:
    books = Books(1, 2, 3, 4)
    books.claimed.add(1)
    assert await invoicing(books).turn() == (2, 0)
    assert books.made == [[2, 4]]


async def test_counters_that_are_away_leave_a_batch_for_the_next_look() -> None:
    books = Books(1, 3)
    books.counters_away = True
    assert await invoicing(books).turn() == (0, 2)
    assert {left.reason for left in books.left.values() if left} == {COUNTERS}
    books.counters_away = False
    assert await invoicing(books).turn() == (2, 0)
    assert books.left == {1: None, 3: None}


async def test_drafts_need_no_close() -> None:
    books = Books(1, 2, torn=frozenset({2}))
    assert await invoicing(books, finalize=False).turn() == (2, 0)
    assert (sorted(books.made), books.closed) == ([[1], [2]], [])


async def test_a_refusal_says_which_field_is_missing() -> None:
    class Nobodys(Books):
        async def make_invoices(self, organization_ids: Sequence[int], *, finalize: bool) -> ScheduledResult:
            raise Unprocessable("This cannot become final.", (("seller", "is not known"),))

    books = Nobodys(1)
    assert await invoicing(books).turn() == (0, 1)
    assert books.left[1] == SkipReason(INCOMPLETE, "This cannot become final. seller is not known")


async def test_what_takes_too_long_is_tried_ever_less_often() -> None:
    books = Books(1, 3, refused=frozenset({3}))
    books.refusal = StoreTimeout()
    schedule, tried = invoicing(books), list[int]()
    for turn in range(1, 40):
        made = len(books.closed)
        await schedule.turn()
        tried += [turn] if 3 in books.closed[made:] else []
    assert tried == [1, 3, 7, 15, 31]
    books.refused = frozenset()
    while [3] not in books.made:
        await schedule.turn()
    assert books.left[3] is None
