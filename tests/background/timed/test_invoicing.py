"""What is due is made in batches of a partition: one that fails stops no other, and is told why."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date

import pytest

from gateway.background.timed.invoicing import Claim, Invoicing
from gateway.core.billing.invoice import (
    CONFLICT,
    COUNTERS,
    INCOMPLETE,
    NOT_AGREED,
    TOOK_TOO_LONG,
    DueInvoice,
    ScheduledResult,
    SkipReason,
)
from gateway.errors import (
    Conflict,
    CountersUnavailable,
    StoreTimeout,
    StoreUnavailable,
    TollkeeperError,
    Unprocessable,
)

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

    async def forget_left(self, count: int, *, finalize: bool) -> None:
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
