"""Refused calls as they are stored: rows of the journal, and counts of the roll-ups, in one transaction.

A worker's batches are numbered: one whose number was stored is passed over, so that it counts once. Names
that callers make up are bounded by organization and day; no user is made for a refused call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import insert, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.accounts.ledger import attributed
from gateway.core.accounts.refusals import RefusedBatch, RefusedCall, RefusedCount, others
from gateway.core.accounts.usage import SUMS
from gateway.core.billing.vector import KINDS
from gateway.core.moments import DAY_MS, moment_of
from gateway.errors import LedgerUnavailable
from persistence.away import refuses_values
from persistence.complaint import complaint
from persistence.ledger import rows, statements, usage_rollup, usage_spans
from persistence.ledger.attribution import Name, columns_of, storable
from persistence.ledger.call_rows import stored_text
from persistence.tables import call

# Of one organization and day: users, projects and models together.
NAMED_A_DAY_MAX = 1_000
ORGANIZATIONS_MAX = 10_000
_REFUSED = SUMS.index("refused")
_CLAIM = text("""
INSERT INTO refused_batch AS b (worker, number) VALUES (cast(:worker AS uuid), :number)
ON CONFLICT (worker) DO UPDATE SET number = excluded.number, stored_at = now()
 WHERE b.number < excluded.number
RETURNING number""")
# Workers that are gone for long: whoever lives has stored something since, or stores nothing twice.
_FORGET = text("DELETE FROM refused_batch WHERE stored_at < now() - interval '30 days'")


class RefusedJournal:
    """Stores batches of refused calls."""

    def __init__(self, engine: AsyncEngine, *, named_a_day_max: int = NAMED_A_DAY_MAX) -> None:
        self._engine = engine
        self._named = Named(named_a_day_max)

    async def store(self, batches: Sequence[RefusedBatch]) -> int:
        """Store those that are not stored; how many calls were counted.

        `LedgerUnavailable` if it cannot now; an error of PostgreSQL's own says that it will not have these.
        """
        try:
            async with self._engine.begin() as connection:
                return await self._store(connection, batches)
        except SQLAlchemyError as error:
            if refuses_values(error):
                raise
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error

    async def _store(self, connection: AsyncConnection, batches: Sequence[RefusedBatch]) -> int:
        # Whoever else stores some of these claims them in the same order, so none waits for the other.
        in_order = sorted(batches, key=lambda one: (one.worker, one.number))
        mine = [one for one in in_order if rows.is_uuid(one.worker) and await _claimed(connection, one)]
        counts = [count for batch in mine for count in batch.counts]
        told = [one for batch in mine for one in batch.calls if rows.is_uuid(one.request_id)]
        named = {(one.organization_id, one.user) for one in counts}
        users = await _known(connection, named | {(one.organization_id, one.user) for one in told})
        hours: usage_rollup.Rollup = {}
        for count in counts:
            bucket = self._bucket(count, users)
            hours.setdefault(bucket, [0] * len(SUMS))[_REFUSED] += count.refused
        if hours:
            columns = statements.columns_of(usage_rollup.rows_of(hours))
            await connection.exec_driver_sql(usage_spans.ROLL_UP_CALLS, tuple(columns))
        if told:
            await connection.execute(insert(call), [_row(one, users) for one in told])
        if any(batch.number == 1 for batch in mine):
            await connection.execute(_FORGET)
        return sum(count.refused for count in counts)

    def _bucket(self, count: RefusedCount, users: dict[Name, int]) -> usage_rollup.Bucket:
        """Where a count goes: names beyond those of its day are others', and nobody's."""
        owner, hour_ms = count.organization_id, count.hour_ms
        user, project, model = users.get((owner, count.user), 0), count.project_id, stored_text(count.model)
        if not self._named.known(owner, hour_ms // DAY_MS, (user, project, model)):
            user, (project, model) = 0, others(project, model)
        return owner, hour_ms, count.tenant_id, count.key_id, user, project, count.service_id, model, ""


class Named:
    """What of refused calls is told apart: the first ones of each organization and day."""

    def __init__(self, a_day_max: int) -> None:
        self._a_day_max = a_day_max
        self._known: dict[tuple[int, int], set[tuple[int, int, str]]] = {}

    def known(self, organization_id: int, day: int, name: tuple[int, int, str]) -> bool:
        """Whether this user, project and model are of those, or become so."""
        if len(self._known) > ORGANIZATIONS_MAX:
            self._known.clear()
        names = self._known.setdefault((organization_id, day), set())
        if name not in names and len(names) < self._a_day_max:
            names.add(name)
        return name in names


async def _claimed(connection: AsyncConnection, batch: RefusedBatch) -> bool:
    """Whether this batch is ours to store; until the commit nobody else can say the same."""
    values = {"worker": batch.worker, "number": batch.number}
    return (await connection.execute(_CLAIM, values)).first() is not None


async def _known(connection: AsyncConnection, names: Iterable[Name]) -> dict[Name, int]:
    """The users that there are; nobody else becomes one by calls that are refused."""
    asked = storable(names)
    if not asked:
        return {}
    found = await connection.exec_driver_sql(statements.KNOW_USERS, columns_of(asked))
    rows_: Iterable[tuple[int, str, int]] = map(tuple, found)
    return {(organization, external_id): id_ for organization, external_id, id_ in rows_}


def _row(one: RefusedCall, users: dict[Name, int]) -> Row:
    content, project, version = attributed(one.attribution)
    return {
        **dict.fromkeys((*KINDS, "tokens", "credits", "units"), 0),
        "request_id": one.request_id,
        "created_at": moment_of(one.at_ms),
        "organization_id": one.organization_id,
        "tenant_id": one.tenant_id,
        "api_key_id": one.key_id,
        "user_id": users.get((one.organization_id, one.user)),
        "service_id": one.service_id or None,
        "project_id": int(project) if project else None,
        "content_id": int(content) if content else None,
        "feature_version": stored_text(version) or None,
        "session": stored_text(one.session) or None,
        "route": stored_text(one.route) or None,
        "model": stored_text(one.model) or None,
        "status": one.status,
        "reason": stored_text(one.reason) or None,
        "streamed": one.streamed,
        "estimated": False,
        "duration_ms": one.duration_ms,
        "refused": True,
    }
