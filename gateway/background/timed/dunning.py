"""Looks after money that does not come: invoices fall overdue, are reminded of, and end in a block."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from gateway.background.isolation import Isolation
from gateway.core.billing.dunning import DunningSchedule
from gateway.errors import Conflict

INTERVAL_S = 5.0
INVOICES_MAX = 500
ORGANIZATIONS_A_PAGE = 200


class Receivables(Protocol):
    """PostgreSQL."""

    async def credit_due(self, after: int, count: int) -> Sequence[int]:
        """Organizations with open credit and something past due, with a higher id than `after`, by id."""

    async def apply_credit(self, organization_id: int) -> None:
        """Apply the open credit of one to what is past due."""

    async def fall_overdue(self, count: int) -> int:
        """Let invoices whose day is over be overdue, so many at once; answers how many were."""

    async def dunning_due(self, schedule: DunningSchedule, after: int, count: int) -> Sequence[int]:
        """Organizations of which a step may be due, those with a higher id than `after`, by id."""

    async def advance_dunning(self, organization_id: int, schedule: DunningSchedule) -> None:
        """Take the steps of one; `Conflict` where there is nothing to do."""


class Dunning:
    """The clock's side of invoices that are to be paid."""

    def __init__(
        self,
        receivables: Receivables,
        schedule: DunningSchedule = DunningSchedule(),  # noqa: B008  # frozen
        *,
        invoices_max: int = INVOICES_MAX,
        isolation: Isolation | None = None,
    ) -> None:
        self._isolation = isolation or Isolation()
        self._receivables = receivables
        self._schedule = schedule
        self._invoices_max = invoices_max

    async def turn(self) -> int:
        """Let all that is overdue be so, and do what is due about it; answers how many invoices fell.

        Open credit comes first: who owes nothing by it is let alone.
        """
        after = fallen = 0
        while page := await self._receivables.credit_due(after, ORGANIZATIONS_A_PAGE):
            await self._isolation.each("credit", page, self._receivables.apply_credit, name=str)
            after = page[-1]
        while now := await self._receivables.fall_overdue(self._invoices_max):
            fallen += now
        after = 0

        async def advance(organization_id: int) -> None:
            with suppress(Conflict):
                await self._receivables.advance_dunning(organization_id, self._schedule)

        while page := await self._receivables.dunning_due(self._schedule, after, ORGANIZATIONS_A_PAGE):
            await self._isolation.each("dunning", page, advance, name=str)
            after = page[-1]
        return fallen

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
