"""Everybody's months are closed once, in pages, an hour after they are over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import cast

import pytest

from gateway.background.loops import Isolation, Loop
from gateway.errors import StoreUnavailable
from gateway.run.timed_loops import month_ends
from persistence.ledger.checkpoints import Checkpoints


class Closed:
    """Organizations of which each has one checkpoint to be made for each month; one fails once."""

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
