"""Scheduled invoices of the keeper: each is the same write as a person's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import KEEPER, Command
from gateway.core.billing.invoice_schedule import DueInvoice, ScheduledResult, SkipReason
from persistence import engine as engines
from persistence.billing import schedule
from persistence.entity import EntityWrite
from persistence.store import Store


@dataclass(slots=True, eq=False)
class Schedule:
    """Finds and makes the invoices that are due; `grace_hours` pass before a draft is finalized."""

    engine: AsyncEngine
    store: Store
    grace_hours: int
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def invoices_due(self, after: int, count: int, *, finalize: bool) -> Sequence[DueInvoice]:
        """Return organizations beyond the id `after` with invoices to draft, at most `count`.

        With `finalize`, organizations with drafts whose grace period is over are included.
        """

        def read(connection: Connection) -> Sequence[Any]:
            return schedule.due(connection, self.clock(), after, count, self.grace_hours, finalize=finalize)

        return await self._read(read, finalize=finalize)

    async def still_due(self, organization_ids: Sequence[int], *, finalize: bool) -> Sequence[DueInvoice]:
        def read(connection: Connection) -> Sequence[Any]:
            grace = self.grace_hours
            return schedule.due_of(connection, self.clock(), organization_ids, grace, finalize=finalize)

        return await self._read(read, finalize=finalize)

    @asynccontextmanager
    async def claims(self) -> AsyncIterator[Callable[[int], Awaitable[bool]]]:
        """Yield a function that claims a partition, so that only one keeper makes its invoices.

        Claims last until the context ends. All are locks of one dedicated connection, so the death of a
        keeper releases them.
        """
        one_by_one = asyncio.Lock()
        async with engines.apart(self.engine) as connection:

            async def claim(partition: int) -> bool:
                async with one_by_one:
                    return await connection.run_sync(schedule.claim, partition)

            yield claim

    async def make_invoices(self, organization_ids: Sequence[int], *, finalize: bool) -> ScheduledResult:
        """Make the due invoices of these organizations in one transaction.

        Organizations that another transaction has locked follow one by one.
        """
        left, busy = await self._make(organization_ids, finalize=finalize)
        for each in sorted(busy):
            more, _ = await self._make([each], finalize=finalize, wait=True)
            left |= more
        return ScheduledResult(
            [organization_id for organization_id in organization_ids if organization_id not in left], left
        )

    async def leave_invoices(self, left: Mapping[int, SkipReason | None]) -> None:
        """Store the reasons in `left` why organizations' invoices were skipped; None clears a reason."""
        if left:
            async with self.engine.begin() as connection:
                await connection.run_sync(schedule.leave, left)

    async def clear_skipped(self, count: int, *, finalize: bool) -> None:
        """Clear the skip reasons of up to `count` organizations whose invoice a person has made meanwhile."""
        async with self.engine.begin() as connection:
            left = await connection.run_sync(schedule.skipped_organizations, count)
        if left:
            due = {each.organization_id for each in await self.still_due(left, finalize=finalize)}
            await self.leave_invoices({each: None for each in left if each not in due})

    async def _make(
        self, organization_ids: Sequence[int], *, finalize: bool, wait: bool = False
    ) -> tuple[dict[int, SkipReason], Collection[int]]:
        """Make the due monthly and advance invoices of these organizations in one transaction.

        Return the skipped organizations with reasons, and the organizations that another transaction has
        locked. With `wait`, wait until a locked organization is free.
        """
        request_id, store, now = str(uuid4()), self.store, self.clock()

        def work(connection: Connection) -> schedule.InvoiceBatch:
            def change_of(verb: str, row_id: int) -> EntityWrite:
                return store.change(
                    connection, Command("invoices", verb, KEEPER, request_id, lambda row: row, row_id)
                )

            terms = (store.letterhead, store.partition, change_of)
            batch = schedule.InvoiceBatch(connection, now, self.grace_hours, finalize, *terms)
            schedule.make_scheduled(batch, organization_ids, wait=wait)
            return batch

        made = await store.run(work)
        return made.left, made.busy

    async def _read(
        self, read: Callable[[Connection], Sequence[Any]], *, finalize: bool
    ) -> Sequence[DueInvoice]:
        async with self.engine.connect() as connection:
            rows = await connection.run_sync(read)
        return [
            DueInvoice(
                row.organization_id, row.draft_id, row.period_start, row.period_end, row.source,
                finalize=row.ripe and finalize, partition=self.store.partition(row.organization_id),
            )
            for row in rows
        ]  # fmt: skip
