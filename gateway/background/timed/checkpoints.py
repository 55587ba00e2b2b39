"""Has what accounts came to by the end of a month added up, once the month is over.

So comparing and finalizing read the open month alone, however old an account is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import Protocol

from gateway.background.isolation import Isolation

INTERVAL_S = 3_600.0
ORGANIZATIONS_A_PAGE = 100
# What a month's last minutes left in the outbox is stored by then, most of the time.
STORED_BY = timedelta(hours=1)


class Checkpoints(Protocol):
    """PostgreSQL."""

    async def after(self, organization_id: int, count: int) -> Sequence[int]:
        """Organizations with a higher id, by id."""

    async def close_months(self, organizations: Sequence[int], open_month: date) -> int:
        """Add up all months before the open one that are not yet; answers how many checkpoints were made."""


class MonthEnds:
    """The clock's side of checkpoints: everybody once a month, and once after a start."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        clock: Callable[[], datetime],
        *,
        organizations_a_page: int = ORGANIZATIONS_A_PAGE,
        isolation: Isolation | None = None,
    ) -> None:
        self._isolation = isolation or Isolation()
        self._checkpoints = checkpoints
        self._clock = clock
        self._organizations_a_page = organizations_a_page
        self._closed_before: date | None = None

    async def turn(self) -> int:
        """Close what is over for everybody, unless it was; answers how many checkpoints were made.

        Where a page fails its organizations are closed one by one; who is left is tried again in an hour.
        """
        open_month = (self._clock() - STORED_BY).date().replace(day=1)
        if open_month == self._closed_before:
            return 0
        after, made, left = 0, 0, 0

        async def close(some: Sequence[int]) -> None:
            nonlocal made
            made += await self._checkpoints.close_months(some, open_month)

        while page := await self._checkpoints.after(after, self._organizations_a_page):
            left += len(page) - await self._isolation.together("checkpoints", page, close, name=str)
            after = page[-1]
        self._closed_before = None if left else open_month
        return made

    async def run(self) -> None:
        """Look every hour, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
