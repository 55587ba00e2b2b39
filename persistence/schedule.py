"""Invoices on schedule, as the keeper's clock makes them: each write is the one that people have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Command, Committed, Row
from gateway.core.billing.due import Due, Left, ScheduledResult, left_by
from gateway.errors import Conflict, NotFound, StoreUnavailable, TollkeeperError
from persistence.billing import schedule
from persistence.store import Store
from persistence.tables.billing import invoice
from persistence.timed_store import KEEPER


class Schedule:
    """What is due and how it is made; a grace in hours."""

    def __init__(
        self,
        engine: AsyncEngine,
        store: Store,
        grace_hours: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._store = store
        self._grace_hours = grace_hours
        self._clock = clock

    async def invoices_due(self, after: int, count: int, *, finalize: bool) -> Sequence[Due]:
        """Invoices to be drafted, and where they are to be final, drafts whose grace is over."""

        def read(connection: Connection) -> Sequence[Any]:
            return schedule.due(connection, self._clock(), after, count, self._grace_hours, finalize=finalize)

        return await self._read(read, finalize=finalize)

    async def still_due(self, organization_ids: Sequence[int], *, finalize: bool) -> Sequence[Due]:
        """The same of these organizations."""

        def read(connection: Connection) -> Sequence[Any]:
            grace = self._grace_hours
            return schedule.due_of(connection, self._clock(), organization_ids, grace, finalize=finalize)

        return await self._read(read, finalize=finalize)

    @asynccontextmanager
    async def claims(self) -> AsyncIterator[Callable[[int], Awaitable[bool]]]:
        """Whoever is told that a partition is its own makes its invoices, and nobody else, until the end.

        One connection has all claims: a keeper that dies lets go of them with it. It holds no snapshot.
        """
        one_by_one = asyncio.Lock()
        async with self._engine.begin() as connection:

            async def claim(partition: int) -> bool:
                async with one_by_one:
                    return await connection.run_sync(schedule.claim, partition)

            yield claim

    async def make_invoices(self, organization_ids: Sequence[int], *, finalize: bool) -> ScheduledResult:
        """Make what is due of these organizations: months together, fees in advance one by one."""
        at = (self._clock(), self._grace_hours)
        left, ahead, busy = await self._store.invoice_months(organization_ids, *at, finalize=finalize)
        for each in sorted(busy):
            more, also, _ = await self._store.invoice_months([each], *at, finalize=finalize, wait=True)
            left, ahead = left | more, [*ahead, *also]
        for row in ahead:
            if row.organization_id in left:
                continue
            try:
                await self._make_ahead(row, finalize=finalize)
            except StoreUnavailable:
                raise
            except TollkeeperError as refusal:
                left[row.organization_id] = left_by(refusal)
        return ScheduledResult([each for each in organization_ids if each not in left], left)

    async def leave_invoices(self, left: Mapping[int, Left | None]) -> None:
        """Keep why organizations' invoices were left; None where nothing is."""
        if left:
            async with self._engine.begin() as connection:
                await connection.run_sync(schedule.leave, left)

    async def forget_left(self, count: int, *, finalize: bool) -> None:
        """Let nothing be said to be left of organizations of which nothing is due: a person made it."""
        async with self._engine.begin() as connection:
            left = await connection.run_sync(schedule.still_left, count)
        if left:
            due = {each.organization_id for each in await self.still_due(left, finalize=finalize)}
            await self.leave_invoices({each: None for each in left if each not in due})

    async def _make_ahead(self, row: Any, *, finalize: bool) -> None:
        """Make a one-off invoice of what its source owes; None of it where that is nothing."""
        draft_id = row.draft_id
        try:
            if draft_id is None:
                wanted = {"organization_id": row.organization_id, "source": row.source}
                made = await self._do("create", None, wanted)
                draft_id = int(str(made["id"]))
            else:
                made = await self._do("recompute", draft_id)
            if not made["lines"]:
                await self._do("delete", draft_id)
            elif finalize:
                await self._do("finalize", draft_id)
        except (Conflict, NotFound):
            if await self._is_due_still(row, draft_id):
                raise

    async def _is_due_still(self, row: Any, draft_id: int | None) -> bool:
        """Whether nobody has drafted it meanwhile, or made it final."""
        if draft_id is not None:
            async with self._engine.connect() as connection:
                status = select(invoice.c.status).where(invoice.c.id == draft_id)
                return (await connection.execute(status)).scalar_one_or_none() == "draft"
        found = await self.still_due([row.organization_id], finalize=True)
        return any((each.source, each.draft_id) == (row.source, None) for each in found)

    async def _read(self, read: Callable[[Connection], Sequence[Any]], *, finalize: bool) -> Sequence[Due]:
        async with self._engine.connect() as connection:
            rows = await connection.run_sync(read)
        return [
            Due(
                row.organization_id, row.draft_id, row.period_start, row.period_end, row.source,
                finalize=row.ripe and finalize, partition=self._store.partition(row.organization_id),
            )
            for row in rows
        ]  # fmt: skip

    async def _do(self, verb: str, row_id: int | None, values: Row | None = None) -> Row:
        command = Command("invoices", verb, KEEPER, str(uuid4()), lambda row: row, row_id, values or {})
        done = await self._store.write(command)
        assert isinstance(done, Committed)
        return done.row
