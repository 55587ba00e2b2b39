"""Every invoice whose day is over is overdue, some at a time."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.background.timed.dunning import Dunning
from gateway.core.billing.dunning import DunningSchedule
from gateway.errors import Conflict

SCHEDULE = DunningSchedule(block_days=30)


class Unpaid:
    """Open invoices whose day is over."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[int] = []
        self.owing: list[int] = []
        self.advanced: list[int] = []
        self.with_credit: list[int] = []

    async def credit_due(self, after: int, count: int) -> Sequence[int]:
        return [owner for owner in self.with_credit if owner > after][:1]

    async def apply_credit(self, organization_id: int) -> None:
        assert self.asked == [], "before anything is overdue"
        self.count -= 1

    async def fall_overdue(self, count: int) -> int:
        self.asked.append(count)
        fallen = min(count, self.count)
        self.count -= fallen
        return fallen

    async def dunning_due(self, schedule: DunningSchedule, after: int, count: int) -> Sequence[int]:
        assert schedule.block_days == 30
        return [owner for owner in self.owing if owner > after][:1]

    async def advance_dunning(self, organization_id: int, schedule: DunningSchedule) -> None:
        if organization_id == 2:
            raise Conflict("Nothing is due of it.")
        self.advanced.append(organization_id)


async def test_all_that_is_overdue_is_so_after_a_turn() -> None:
    unpaid = Unpaid(5)
    dunning = Dunning(unpaid, SCHEDULE, invoices_max=2)
    assert await dunning.turn() == 5
    assert unpaid.asked == [2, 2, 2, 2]
    assert await dunning.turn() == 0


async def test_credit_is_applied_before_anything_is_overdue() -> None:
    unpaid = Unpaid(5)
    unpaid.with_credit = [1, 2, 3]
    assert await Dunning(unpaid, SCHEDULE).turn() == 2


async def test_steps_are_taken_of_everybody_and_one_that_has_none_holds_nobody_up() -> None:
    unpaid = Unpaid(0)
    unpaid.owing = [1, 2, 3]
    await Dunning(unpaid, SCHEDULE).turn()
    assert unpaid.advanced == [1, 3]
