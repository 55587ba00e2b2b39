"""Looks after money that does not come: an invoice whose day to be paid is over is overdue."""

from __future__ import annotations

import asyncio
from typing import Protocol

INTERVAL_S = 5.0
INVOICES_MAX = 500


class Receivables(Protocol):
    """PostgreSQL."""

    async def fall_overdue(self, count: int) -> int:
        """Let invoices whose day is over be overdue, so many at once; answers how many were."""


class Dunning:
    """The clock's side of invoices that are to be paid."""

    def __init__(self, receivables: Receivables, *, invoices_max: int = INVOICES_MAX) -> None:
        self._receivables = receivables
        self._invoices_max = invoices_max

    async def turn(self) -> int:
        """Let all that is overdue be so; answers how many invoices."""
        fallen = 0
        while now := await self._receivables.fall_overdue(self._invoices_max):
            fallen += now
        return fallen

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
