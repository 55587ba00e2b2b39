"""What is stored of budgets: what the counters are rebuilt from and compared with, as of one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.ledger import Budgeted
from gateway.core.integrity.budget_accounts import StoredBudgets
from persistence.keeper.definitions import budgets_of
from persistence.refusals import translating

# Dead letters of one organization that are looked at.
ASIDE_MAX = 1_000
# A window is kept longer than a year is, the whole use of a session longer than the counters keep it.
KEPT_DAYS, SESSIONS_KEPT_DAYS = 400, 60

_USED = text("""
SELECT u.budget_id, k.start AS start_ms, u.value, u.used
  FROM unnest(cast(:ids AS bigint[]), cast(:starts AS bigint[])) AS k (id, start)
  JOIN budget_use AS u ON u.budget_id = k.id AND u.start = to_timestamp(k.start / 1000.0)
 ORDER BY 1, 2, 3""")
# What never begins again is kept, but of sessions: the counters forget those as well.
_FORGET = text("""
DELETE FROM budget_use AS u USING budget AS b WHERE b.id = u.budget_id
   AND (b."interval" <> 'total' AND u.moved_at < now() - make_interval(days => :days)
        OR b."interval" = 'total' AND b.each = 'session'
           AND u.moved_at < now() - make_interval(days => :session_days))""")
_MARK = text("SELECT last_entry_id FROM partition_state WHERE partition = :partition")
_ASIDE = text("""
SELECT raw FROM dead_letter WHERE resolved_at IS NULL AND organization_id = ANY(:organizations) LIMIT :n""")


class BudgetUses:
    """Where the verifier and the reconciler read what is used."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def budgets(self, organizations: Sequence[int]) -> Mapping[int, Sequence[Budget]]:
        """The budgets of organizations that have any."""
        async with translating(self._engine.connect()) as connection:
            return await budgets_of(connection, organizations)

    async def stored(
        self, partition: int, organizations: Sequence[int], windows: Iterable[Budgeted]
    ) -> StoredBudgets:
        """What is used of these organizations' windows, whoever's accounts, and up to which entry."""
        async with translating(self._engine.connect()) as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            mark = await connection.scalar(_MARK, {"partition": partition})
            used = await _used(connection, list(windows))
            values = {"organizations": list(organizations), "n": ASIDE_MAX}
            aside = [bytes(raw) for raw in await connection.scalars(_ASIDE, values)]
        return StoredBudgets((mark or "").encode(), used, aside)


async def _used(connection: AsyncConnection, windows: Sequence[Budgeted]) -> dict[Budgeted, int]:
    if not windows:
        return {}
    values = {"ids": [one.budget_id for one in windows], "starts": [one.start_ms for one in windows]}
    rows = await connection.execute(_USED, values)
    return {Budgeted(row.budget_id, row.start_ms, row.value): row.used for row in rows}


async def forget(engine: AsyncEngine) -> int:
    """Delete what was used of windows that ended long ago; answers how many rows."""
    async with engine.begin() as connection:
        values = {"days": KEPT_DAYS, "session_days": SESSIONS_KEPT_DAYS}
        return int((await connection.execute(_FORGET, values)).rowcount)
