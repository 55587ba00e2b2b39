"""Has what is known and owed written as charges, every hour: days of subscriptions, units that were used.

What is charged of one and of many costs PostgreSQL nearly the same, so those of a partition are charged
together.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.background.isolation import is_store_away
from gateway.errors import TollkeeperError

INTERVAL_S = 3_600.0
ORGANIZATIONS_A_PAGE = 500
# Their charges are one transaction: the flush of their partition waits for it.
ORGANIZATIONS_A_BATCH = 25


class Charges(Protocol):
    """PostgreSQL."""

    def partition(self, organization_id: int) -> int:
        """Where the counters have an organization."""

    async def to_charge(self, after: int, count: int) -> Sequence[int]:
        """Organizations with something to charge, those with a higher id than `after`, by id."""

    async def charge_free(self, organization_ids: Sequence[int]) -> Sequence[int]:
        """Charge what is known of some of a partition; answers those that somebody else charges now."""

    async def charge(self, organization_id: int) -> None:
        """Charge what is known of one, behind whoever charges it now."""


class Charging:
    """The clock's side of charges; what ends a cycle or sells credits is charged as it is stored."""

    def __init__(
        self,
        charges: Charges,
        log: Callable[..., None],
        *,
        organizations_a_page: int = ORGANIZATIONS_A_PAGE,
        organizations_a_batch: int = ORGANIZATIONS_A_BATCH,
    ) -> None:
        self._charges = charges
        self._log = log
        self._organizations_a_page = organizations_a_page
        self._organizations_a_batch = organizations_a_batch

    async def turn(self) -> int:
        """Charge what is known of everybody; answers of how many there was something."""
        after, found = 0, 0
        while page := await self._charges.to_charge(after, self._organizations_a_page):
            for batch in self._batches(page):
                await self._charge(batch)
            after, found = page[-1], found + len(page)
        return found

    async def run(self) -> None:
        """Look every hour, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)

    def _batches(self, page: Sequence[int]) -> list[list[int]]:
        """Those of each partition, so many at once."""
        shares = defaultdict[int, list[int]](list)
        for organization_id in page:
            shares[self._charges.partition(organization_id)].append(organization_id)
        size = self._organizations_a_batch
        return [share[at : at + size] for share in shares.values() for at in range(0, len(share), size)]

    async def _charge(self, organization_ids: Sequence[int]) -> None:
        """Charge them together; where one of them makes PostgreSQL refuse all, each on its own."""
        try:
            alone = await self._charges.charge_free(organization_ids)
        except TollkeeperError as refusal:
            if is_store_away(refusal):
                raise
            alone = organization_ids
        for organization_id in alone:
            try:
                await self._charges.charge(organization_id)
            except TollkeeperError as refusal:
                if is_store_away(refusal):
                    raise
                told = {"organization_id": organization_id, "why": str(refusal)}
                self._log("charges left", **told, level="warning")
