"""Has credits bought that a low balance ordered, and those with an invoice of their own billed, each once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from gateway.background.isolation import Isolation
from gateway.errors import Conflict, Unprocessable

INTERVAL_S = 1.0
ADDITIONS_A_PAGE = 200


class Sales(Protocol):
    """PostgreSQL."""

    async def top_ups_ordered(self, after: int, count: int) -> Sequence[int]:
        """Orders that are no additions yet, behind one of them, by id."""

    async def make_ordered(self, order_id: int) -> None:
        """Make the addition of one; `Conflict` or `Unprocessable` where that cannot be."""

    async def top_ups_due(self, after: int, count: int) -> Sequence[tuple[int, int]]:
        """Additions that are to have an invoice, behind one of them, each with its organization, by id."""

    async def bill_top_up(self, addition_id: int, organization_id: int) -> None:
        """Make the invoice of one; `Conflict` or `Unprocessable` where that cannot be now."""


class TopUps:
    """The clock's side of credits that are sold."""

    def __init__(
        self, sales: Sales, *, additions_a_page: int = ADDITIONS_A_PAGE, isolation: Isolation | None = None
    ) -> None:
        self._sales, self._isolation = sales, isolation or Isolation()
        self._additions_a_page = additions_a_page

    async def turn(self) -> int:
        """Make what is ordered and bill all there are; answers how many were billed.

        What cannot be made or billed now holds no other up.
        """
        await self._make_ordered()
        after, billed = 0, 0

        async def bill(one: tuple[int, int]) -> None:
            nonlocal billed
            with suppress(Conflict, Unprocessable):
                await self._sales.bill_top_up(*one)
                billed += 1

        while page := await self._sales.top_ups_due(after, self._additions_a_page):
            await self._isolation.each("top-ups", page, bill, name=lambda one: f"addition {one[0]}")
            after, _ = page[-1]
        return billed

    async def _make_ordered(self) -> None:
        async def make(order_id: int) -> None:
            with suppress(Conflict, Unprocessable):
                await self._sales.make_ordered(order_id)

        after = 0
        while page := await self._sales.top_ups_ordered(after, self._additions_a_page):
            await self._isolation.each("top-ups", page, make, name=lambda one: f"order {one}")
            after = page[-1]

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
