"""Stored jobs: one row each with the state that the counters have, and how the Admin API reads them."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.upstream_jobs import NO_COST, Job
from gateway.errors import LedgerUnavailable
from persistence.engine import looking
from persistence.entity import Entity
from persistence.error_mapping import complaint, refuses_values
from persistence.keeper import retention
from persistence.ledger.rows import stored_text
from persistence.queries import query
from persistence.tables import job, money

# A settled job never changes, but by its cost that was not known. A job of an unknown organization is skipped.
_STORE = query("jobs.store", "Store jobs", """
INSERT INTO job AS j (request_id, organization_id, tenant_id, name, kind, model, status, held, cost, currency,
                      lines, created_at, expires_at, settled_at)
SELECT n.request_id, t.organization_id, t.id, n.name, n.kind, n.model, n.status, n.held, n.cost, n.currency,
       n.lines, to_timestamp(n.created_ms / 1000.0), to_timestamp(n.expires_ms / 1000.0),
       to_timestamp(n.settled_ms / 1000.0)
  FROM jsonb_to_recordset(cast(:rows AS jsonb)) AS n (
       request_id uuid, organization_id bigint, tenant_id bigint, name text, kind text, model text, status text,
       held bigint, cost bigint, currency text, lines bigint, created_ms bigint, expires_ms bigint,
       settled_ms bigint)
  JOIN tenant AS t ON t.id = n.tenant_id AND t.organization_id = n.organization_id
 ORDER BY n.request_id
ON CONFLICT (request_id) DO UPDATE SET name = excluded.name, status = excluded.status, held = excluded.held,
    cost = excluded.cost, settled_at = excluded.settled_at
 WHERE j.settled_at IS NULL OR (j.cost IS NULL AND excluded.cost IS NOT NULL)""")  # fmt: skip
# A reclaimed call is corrected later by what it used.
_COSTS = query("jobs.costs", "Select the costs of jobs", f"""
SELECT request_id::text AS request, max(cost) AS cost FROM call
 WHERE request_id = ANY(cast(:ids AS uuid[])) AND NOT refused AND reason IS DISTINCT FROM 'reclaimed'
   AND created_at >= {retention.SINCE} GROUP BY request_id""")  # fmt: skip

# A job expires within two days; older ones are left to the loops of jobs.
_OPEN = query("jobs.open", "Count open jobs", """
SELECT count(*) AS open, coalesce(extract(epoch FROM now() - min(created_at)), 0) AS oldest
  FROM job WHERE settled_at IS NULL AND expires_at > now() - interval '1 day'""")  # fmt: skip

JOBS = Entity(
    job,
    source=select(
        *(column for column in job.c if column.name not in {"held", "cost", "request_id"}),
        money(job.c.held).label("held"),
        money(job.c.cost).label("cost"),
    ),
    conditions={"id": lambda value: job.c.name == value},
)


async def count_open_jobs(engine: AsyncEngine) -> dict[str, object]:
    """Return the metrics of jobs that are not settled, as counted in their table."""
    async with looking(engine) as connection:
        jobs = (await connection.execute(_OPEN)).one()
    return {"jobs_open": jobs.open, "jobs_oldest_seconds": float(jobs.oldest)}


class JobRows:
    """Stores jobs in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def store(self, jobs: Sequence[Job]) -> None:
        """Insert or update the rows of jobs.

        Raise `LedgerUnavailable` if PostgreSQL cannot store them now. Raise PostgreSQL's error if it refuses
        the values.
        """
        rows = {job.hold_id: _row(job) for job in jobs}  # a job may be listed twice
        try:
            async with self._engine.begin() as connection:
                await connection.execute(_STORE, {"rows": dumps([*rows.values()])})
        except SQLAlchemyError as error:
            if refuses_values(error):
                raise
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error

    async def costs(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Return the costs of jobs by the ids of their holds, as far as the journal has them.

        Raise `LedgerUnavailable` if PostgreSQL cannot be read now.
        """
        costs = dict[str, int]()
        try:
            async with self._engine.connect() as connection:
                times = await retention.places(connection, [job.hold_id for job in jobs])
                for some, since in retention.by_month(times):
                    rows = await connection.execute(_COSTS, {"ids": some, "since": since})
                    costs |= {row.request: row.cost for row in rows if row.cost is not None}
        except SQLAlchemyError as error:
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error
        return costs


def _row(one: Job) -> dict[str, object]:
    priced = bool(one.currency)
    held = 0 if one.settled_ms else one.held
    charged = priced and one.settled_ms and one.cost != NO_COST
    return {
        "request_id": one.hold_id, "organization_id": one.organization_id, "tenant_id": one.tenant_id,
        "name": stored_text(one.id or one.hold_id), "kind": one.kind, "model": stored_text(one.model),
        "status": one.status, "held": held if priced else None,
        "cost": one.cost if charged else None, "currency": one.currency or None,
        "lines": one.lines, "created_ms": one.created_ms, "expires_ms": one.expires_ms,
        "settled_ms": one.settled_ms or None,
    }  # fmt: skip
