"""Every addition that is to have an invoice gets it; one that cannot holds no other up."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.background.timed.top_ups import TopUps
from gateway.errors import Conflict, Unprocessable


class Sold:
    """Additions without an invoice; `stuck` ones cannot have one now."""

    def __init__(self, *ids: int, stuck: frozenset[int] = frozenset()) -> None:
        self.ids, self.stuck = set(ids), stuck
        self.orders: set[int] = set()

    async def top_ups_ordered(self, after: int, count: int) -> Sequence[int]:
        return sorted(order for order in self.orders if order > after)[:count]

    async def make_ordered(self, order_id: int) -> None:
        self.orders.remove(order_id)
        if order_id in self.stuck:
            raise Conflict("This order is done.")
        self.ids.add(order_id)

    async def top_ups_due(self, after: int, count: int) -> Sequence[tuple[int, int]]:
        return [(id_, 1) for id_ in sorted(self.ids) if id_ > after][:count]

    async def bill_top_up(self, addition_id: int, organization_id: int) -> None:
        if addition_id in self.stuck:
            raise Unprocessable("It has no seller.")
        self.ids.remove(addition_id)


async def test_all_are_billed_page_by_page() -> None:
    assert await TopUps(Sold(4, 1, 7), additions_a_page=2).turn() == 3


async def test_what_cannot_be_billed_holds_nobody_up() -> None:
    sold = Sold(1, 2, 3, stuck=frozenset({1}))
    assert await TopUps(sold, additions_a_page=1).turn() == 2
    assert sold.ids == {1}


async def test_what_is_ordered_is_made_and_billed_in_one_turn() -> None:
    sold = Sold(stuck=frozenset({2}))
    sold.orders = {1, 2, 3}
    assert await TopUps(sold, additions_a_page=1).turn() == 2
    assert sold.orders == set()
