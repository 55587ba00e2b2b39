"""Invoices on schedule, as the keeper's clock makes them: each write is the one that people have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Command, Committed, Row
from gateway.core.billing.due import Due
from gateway.errors import Conflict, NotFound
from persistence.billing import schedule
from persistence.store import Store
from persistence.tables.billing import invoice
from persistence.timed_store import KEEPER

# An organization has its month and a fee in advance due, not more.
OF_ONE_MAX = 3


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
        async with self._engine.connect() as connection:
            rows = await connection.run_sync(
                schedule.due, self._clock(), after, count, self._grace_hours, finalize=finalize
            )
        return [
            Due(
                row.organization_id, row.draft_id, row.period_start, row.period_end, row.source,
                finalize=row.ripe and finalize,
            )
            for row in rows
        ]  # fmt: skip

    async def draft_invoice(self, due: Due) -> int | None:
        """Make a draft, or its lines again; None where there is nothing to bill, or another keeper has it."""
        wanted: Row = {"period_start": due.period_start, "period_end": due.period_end}
        if due.source is not None:
            wanted = {"source": due.source}
        try:
            if due.draft_id is not None:
                made = await self._do("recompute", due.draft_id)
            else:
                made = await self._do("create", None, {"organization_id": due.organization_id, **wanted})
            if made["lines"]:
                return int(str(made["id"]))
            await self._do("delete", int(str(made["id"])))
        except (Conflict, NotFound):
            if await self._is_due_still(due):
                raise
        return None

    async def finalize_invoice(self, draft_id: int) -> None:
        """Give a draft its number, unless another keeper did."""
        try:
            await self._do("finalize", draft_id)
        except (Conflict, NotFound):
            if await self._is_draft(draft_id):
                raise

    async def leave_invoice(self, organization_id: int, why: str | None) -> None:
        """Keep why an organization's invoice was left."""
        async with self._engine.begin() as connection:
            await connection.run_sync(schedule.leave, organization_id, why)

    async def _is_due_still(self, due: Due) -> bool:
        """Whether nobody has drafted it meanwhile, or made it final."""
        if due.draft_id is not None:
            return await self._is_draft(due.draft_id)
        found = await self.invoices_due(due.organization_id - 1, OF_ONE_MAX, finalize=True)
        return any(
            (other.organization_id, other.source, other.draft_id) == (due.organization_id, due.source, None)
            for other in found
        )

    async def _is_draft(self, invoice_id: int) -> bool:
        async with self._engine.connect() as connection:
            status = select(invoice.c.status).where(invoice.c.id == invoice_id)
            return (await connection.execute(status)).scalar_one_or_none() == "draft"

    async def _do(self, verb: str, row_id: int | None, values: Row | None = None) -> Row:
        command = Command("invoices", verb, KEEPER, str(uuid4()), lambda row: row, row_id, values or {})
        done = await self._store.write(command)
        assert isinstance(done, Committed)
        return done.row
