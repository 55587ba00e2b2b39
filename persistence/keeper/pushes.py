"""Control writes as the pusher takes them: in order, one account at a time, with what they define.

An account's writes are handed out under a transaction-level advisory lock, so two keepers never
push one account at once. Whoever waits for it has no connection meanwhile, and so many at most are held by
pushes: the counters they wait for may hang. A definition is read here, at the moment it is pushed: the
tables are the truth, and an older definition that waited is never brought over a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.definitions import ControlWrite, Definition
from gateway.core.accounts.plan_terms import PlanTerms, read_terms
from persistence.keeper import definitions

WRITES_MAX = 500
# Accounts that are pushed at once, each with a connection.
PUSHES_AT_ONCE_MAX = 4
# How soon an account is asked for again that another keeper pushes.
BUSY_S = 0.05

# The catalogue and the prices are of no partition: whoever comes first writes them.
_WAITING = text("""
SELECT account FROM control_write
 WHERE state = 'pending' AND (cast(:partitions AS smallint[]) IS NULL OR partition IS NULL
                              OR partition = ANY(cast(:partitions AS smallint[])))
 GROUP BY account ORDER BY min(position) LIMIT :n""")
_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended('control:' || :account, 0))")
_TAKE = text("""
SELECT id, position, account, verb, payload FROM control_write
 WHERE account = :account AND state = 'pending' ORDER BY position LIMIT :n""")
_APPLIED = text("""
UPDATE control_write SET applied_at = coalesce(applied_at, now()),
       state = CASE WHEN verb = 'define' THEN 'done' ELSE 'applied' END,
       done_at = CASE WHEN verb = 'define' THEN now() END
 WHERE id = :id AND state = 'pending'""")
_REFUSED = text("""
UPDATE control_write SET state = 'refused', result = jsonb_build_object('reason', cast(:reason AS text))
 WHERE id = :id AND state = 'pending'""")
# How a version before this one named terms: its writes may still wait, or be pushed again.
_BEFORE = {"total": "total_amount", "interval": "reset_interval", "policy": "overage_policy"}
_TENANT = text("SELECT organization_id FROM tenant WHERE id = :id")


class Waiting:
    """The writes one account waits for, oldest first; marked as they are applied."""

    def __init__(self, connection: AsyncConnection, writes: Sequence[ControlWrite]) -> None:
        self.writes = writes
        self._connection = connection

    async def applied(self, write: ControlWrite) -> None:
        """Note that the counters have it; a definition is done with that."""
        await self._connection.execute(_APPLIED, {"id": write.id})

    async def refused(self, write: ControlWrite, reason: str) -> None:
        """Note that the counters will never take it."""
        await self._connection.execute(_REFUSED, {"id": write.id, "reason": reason})


class Pushes:
    """Where the pusher finds its work."""

    def __init__(self, engine: AsyncEngine, *, at_once_max: int = PUSHES_AT_ONCE_MAX) -> None:
        self._engine = engine
        self._free = asyncio.Semaphore(at_once_max)
        # Of accounts that somebody here pushes, or waits for.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def accounts(self, count: int, partitions: Sequence[int] | None = None) -> list[str]:
        """Accounts with writes that wait, the oldest first; of all, or of some partitions and of none."""
        of = None if partitions is None else list(partitions)
        async with self._engine.connect() as connection:
            rows = await connection.execute(_WAITING, {"n": count, "partitions": of})
            return [str(row.account) for row in rows]

    @asynccontextmanager
    async def waiting(self, account: str) -> AsyncIterator[Waiting]:
        """An account's waiting writes, held until the block ends."""
        turn = self._turns.setdefault(account, asyncio.Lock())
        async with turn:
            while True:
                async with self._free, self._engine.begin() as connection:
                    if await connection.scalar(_LOCK, {"account": account}):
                        rows = await connection.execute(_TAKE, {"account": account, "n": WRITES_MAX})
                        yield Waiting(
                            connection, [await _write(connection, row) for row in rows.mappings().all()]
                        )
                        return
                await asyncio.sleep(BUSY_S)


async def _write(connection: AsyncConnection, row: RowMapping) -> ControlWrite:
    verb, account = str(row["verb"]), str(row["account"])
    payload: dict[str, Any] = dict(row["payload"] or {})
    tenant_id = organization_id = 0
    found: tuple[Definition, ...] = ()
    terms: PlanTerms | None = None
    if verb == "define":
        found = await definitions.of_account(connection, account)
    elif account.startswith("tenant:"):
        tenant_id = int(account.partition(":")[2])
        organization_id = int((await connection.execute(_TENANT, {"id": tenant_id})).scalar_one())
    else:
        assert account.startswith("organization:"), account
        organization_id = int(account.partition(":")[2])
    if verb == "plan":
        stated = {_BEFORE.get(name, name): value for name, value in payload.items()}
        terms = read_terms(stated, definitions.now_ms())
    return ControlWrite(
        id=str(row["id"]),
        position=int(row["position"]),
        account=account,
        verb=verb,
        payload=payload,
        tenant_id=tenant_id,
        organization_id=organization_id,
        definitions=found,
        terms=terms,
    )
