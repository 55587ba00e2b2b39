"""Every invoice whose day is over is overdue, some at a time."""

from __future__ import annotations

from gateway.background.timed.dunning import Dunning


class Unpaid:
    """Open invoices whose day is over."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[int] = []

    async def fall_overdue(self, count: int) -> int:
        self.asked.append(count)
        fallen = min(count, self.count)
        self.count -= fallen
        return fallen


async def test_all_that_is_overdue_is_so_after_a_turn() -> None:
    unpaid = Unpaid(5)
    dunning = Dunning(unpaid, invoices_max=2)
    assert await dunning.turn() == 5
    assert unpaid.asked == [2, 2, 2, 2]
    assert await dunning.turn() == 0
