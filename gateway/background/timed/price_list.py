"""The bundled price list, which the first keeper that starts on a database without one stores there, once.

A person takes over later versions of the list (`tollkeeper prices diff`): no upgrade changes a price.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.core.accounts.administration import Row

if TYPE_CHECKING:
    from persistence.resources.prices import PriceTable


class PriceList:
    """Loads the price list that `read` returns; calls `observe` with the number of rows it added.

    Where the database has a list, `compare` is called once.
    """

    def __init__(
        self,
        table: PriceTable,
        read: Callable[[], Sequence[Row]],
        observe: Callable[[int], None],
        compare: Callable[[], None],
    ) -> None:
        self._table = table
        self._read = read
        self._observe = observe
        self._compare = compare
        self.there = asyncio.Event()

    async def run(self) -> None:
        """Store the bundled price list if the database has none, then wait until cancelled."""
        has_list = await self._table.has_bundled()
        if not has_list:
            rows = await asyncio.to_thread(self._read)
            added = await self._table.put_in_bundled(rows)
            if added:
                self._observe(added)
        self.there.set()
        if has_list:
            await asyncio.to_thread(self._compare)
        await asyncio.Event().wait()
