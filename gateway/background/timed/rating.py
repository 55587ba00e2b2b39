"""Has calls rated again that a price is about, where they were too many for the transaction that set it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.background.isolation import Isolation

INTERVAL_S = 5.0
PRICES_A_TURN = 20


class Prices(Protocol):
    """PostgreSQL."""

    async def prices_left(self, count: int) -> Sequence[int]:
        """Prices that have calls left."""

    async def rate(self, price_id: int) -> None:
        """Rate the next piece of one's."""


class Rating:
    """The clock's side of reratings."""

    def __init__(self, prices: Prices, *, isolation: Isolation | None = None) -> None:
        self._prices, self._isolation = prices, isolation or Isolation()

    async def turn(self) -> int:
        """Rate a piece of each price; answers with how many that went well."""
        left = await self._prices.prices_left(PRICES_A_TURN)
        return await self._isolation.each("rating", left, self._prices.rate, name=str)

    async def run(self) -> None:
        """Look every few seconds, at once again where there was something, until cancelled."""
        while True:
            if not await self.turn():
                await asyncio.sleep(INTERVAL_S)
