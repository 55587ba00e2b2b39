"""Puts the bundled price list into a database that has none: once, by the first keeper that starts on it.

Later versions of the list are for a person to take over (`tollkeeper prices diff`): no upgrade changes
what anything costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.core.accounts.administration import Row


class Table(Protocol):
    """Where prices are kept."""

    async def has_bundled(self) -> bool:
        """Whether there are any of the bundled list."""

    async def put_in_bundled(self, rows: Sequence[Row]) -> int:
        """Add these where there are none yet, whoever else does; answers how many were added."""


class PriceList:
    """The list, as `read` reads it; `observe` is told how many rows were put in."""

    def __init__(
        self, table: Table, read: Callable[[], Sequence[Row]], observe: Callable[[int], None]
    ) -> None:
        self._table = table
        self._read = read
        self._observe = observe
        self.there = asyncio.Event()

    async def run(self) -> None:
        """Put the list in if it is missing, then wait until cancelled."""
        if not await self._table.has_bundled():
            rows = await asyncio.to_thread(self._read)
            added = await self._table.put_in_bundled(rows)
            if added:
                self._observe(added)
        self.there.set()
        await asyncio.Event().wait()
