"""Has what is known and owed written as charges, every hour: days of subscriptions, units that were used."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

INTERVAL_S = 3_600.0
ORGANIZATIONS_A_PAGE = 500


class Charges(Protocol):
    """PostgreSQL."""

    async def to_charge(self, after: int, count: int) -> Sequence[int]:
        """Organizations with something to charge, those with a higher id than `after`, by id."""

    async def charge(self, organization_id: int) -> None:
        """Charge what is known of one."""


class Charging:
    """The clock's side of charges; what ends a cycle or sells credits is charged as it is stored."""

    def __init__(self, charges: Charges, *, organizations_a_page: int = ORGANIZATIONS_A_PAGE) -> None:
        self._charges = charges
        self._organizations_a_page = organizations_a_page

    async def turn(self) -> int:
        """Charge what is known of everybody; answers of how many there was something."""
        after, charged = 0, 0
        while page := await self._charges.to_charge(after, self._organizations_a_page):
            for organization_id in page:
                await self._charges.charge(organization_id)
            after, charged = page[-1], charged + len(page)
        return charged

    async def run(self) -> None:
        """Look every hour, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
