"""Has credits that are sold with an invoice of their own billed at once, each once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.errors import Conflict, Unprocessable

INTERVAL_S = 1.0
ADDITIONS_A_PAGE = 200


class Sales(Protocol):
    """PostgreSQL."""

    async def top_ups_due(self, after: int, count: int) -> Sequence[tuple[int, int]]:
        """Additions that are to have an invoice, behind one of them, each with its organization, by id."""

    async def bill_top_up(self, addition_id: int, organization_id: int) -> None:
        """Make the invoice of one; `Conflict` or `Unprocessable` where that cannot be now."""


class TopUps:
    """The clock's side of credits that are sold."""

    def __init__(self, sales: Sales, *, additions_a_page: int = ADDITIONS_A_PAGE) -> None:
        self._sales = sales
        self._additions_a_page = additions_a_page

    async def turn(self) -> int:
        """Bill all there are; answers how many. What cannot be billed now holds no other up."""
        after, billed = 0, 0
        while page := await self._sales.top_ups_due(after, self._additions_a_page):
            for addition_id, organization_id in page:
                after = addition_id
                try:
                    await self._sales.bill_top_up(addition_id, organization_id)
                except (Conflict, Unprocessable):
                    continue
                billed += 1
        return billed

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
