"""Drafts what is due on schedule, waits for what settles late, finalizes; says what it left and why.

Who has done it already is told by the database: two keepers make nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.core.billing.due import Due
from gateway.errors import TollkeeperError

INTERVAL_S = 60.0
ORGANIZATIONS_A_PAGE = 500


class Invoices(Protocol):
    """PostgreSQL."""

    async def invoices_due(self, after: int, count: int, *, finalize: bool) -> Sequence[Due]:
        """What is due of organizations with a higher id, by id; `finalize`: drafts of old too."""

    async def draft_invoice(self, due: Due) -> int | None:
        """Make it, or its lines again; None where there is nothing to bill."""

    async def finalize_invoice(self, draft_id: int) -> None:
        """Give a draft its number."""

    async def leave_invoice(self, organization_id: int, why: str | None) -> None:
        """Keep why an organization's invoice was left; None where nothing is."""


class Closing(Protocol):
    """Brings accounts to a close."""

    async def close(self, organization_id: int) -> None:
        """Wait until everything that has happened is stored and agrees."""


class Invoicing:
    """The clock's side of invoices: so many organizations at once, each on its own."""

    def __init__(
        self, invoices: Invoices, closing: Closing, log: Callable[..., None], *, finalize: bool, at_once: int
    ) -> None:
        self._invoices = invoices
        self._closing = closing
        self._log = log
        self._finalize = finalize
        self._at_once = at_once

    async def turn(self) -> tuple[int, int]:
        """Make what is due; answers how many were made, and how many were left."""
        after, made, left = 0, 0, 0
        free = asyncio.Semaphore(self._at_once)
        while page := await self._invoices.invoices_due(after, ORGANIZATIONS_A_PAGE, finalize=self._finalize):
            done = await asyncio.gather(*(self._one(due, free) for due in page))
            after, made, left = page[-1].organization_id, made + sum(done), left + done.count(False)
        if made or left:
            self._log("invoices made", made=made, left=left, level="warning" if left else "info")
        return made, left

    async def run(self) -> None:
        """Look every minute, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)

    async def _one(self, due: Due, free: asyncio.Semaphore) -> bool:
        async with free:
            try:
                await self._make(due)
            except TollkeeperError as refusal:
                why = getattr(refusal, "message", "") or str(refusal)
                self._log("invoice left", organization_id=due.organization_id, why=why, level="warning")
                await self._invoices.leave_invoice(due.organization_id, why)
                return False
            await self._invoices.leave_invoice(due.organization_id, None)
            return True

    async def _make(self, due: Due) -> None:
        if due.finalize:
            await self._closing.close(due.organization_id)
        draft_id = await self._invoices.draft_invoice(due)
        if draft_id is not None and due.finalize:
            await self._invoices.finalize_invoice(draft_id)
