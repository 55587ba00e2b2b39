"""Control writes as the pusher takes them: in order, many accounts at a time, with what they define.

An account's writes are handed out under a transaction-level advisory lock, so two keepers never
push one account at once. Whoever waits for one has no connection meanwhile, and so many at most are held by
pushes: the counters they wait for may hang. A definition is read here, at the moment it is pushed: the
tables are the truth, and an older definition that waited is never brought over a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.definitions import ControlWrite, Definition, KeyDefinition
from gateway.core.accounts.plan_terms import PlanTerms, read_terms
from gateway.core.model import Limits
from persistence.keeper import definitions, named_accounts

# Writes that are taken at once, divided among the accounts that are pushed together.
WRITES_MAX = 1_000
# Accounts are pushed some together, so many times at once, each time with a connection.
PUSHES_AT_ONCE_MAX = 4
# How soon an account is asked for again that another keeper pushes.
BUSY_S = 0.05

# The catalogue and the prices are of no partition: whoever comes first writes them.
_WAITING = text("""
SELECT account FROM control_write
 WHERE state = 'pending' AND (cast(:partitions AS smallint[]) IS NULL OR partition IS NULL
                              OR partition = ANY(cast(:partitions AS smallint[])))
 GROUP BY account ORDER BY min(position) LIMIT :n""")
_LOCK = text("""
SELECT account FROM unnest(cast(:accounts AS text[])) AS account
 WHERE pg_try_advisory_xact_lock(hashtextextended('control:' || account, 0))""")
_TAKE = text("""
SELECT id, position, account, verb, payload, turn FROM (
       SELECT id, position, account, verb, payload,
              row_number() OVER (PARTITION BY account ORDER BY position) AS turn
         FROM control_write WHERE account = ANY(cast(:accounts AS text[])) AND state = 'pending') AS w
 WHERE turn <= :n ORDER BY position""")
_APPLIED = text("""
UPDATE control_write SET applied_at = coalesce(applied_at, now()),
       state = CASE WHEN verb = 'define' THEN 'done' ELSE 'applied' END,
       done_at = CASE WHEN verb = 'define' THEN now() END
 WHERE id = ANY(cast(:ids AS uuid[])) AND state = 'pending'""")
_REFUSED = text("""
UPDATE control_write AS w SET state = 'refused', result = jsonb_build_object('reason', r.reason)
  FROM unnest(cast(:ids AS uuid[]), cast(:reasons AS text[])) AS r (id, reason)
 WHERE w.id = r.id AND w.state = 'pending'""")
_TENANT = "tenant:"
# How a version before this one named terms: its writes may still wait, or be pushed again.
_BEFORE = {"total": "total_amount", "interval": "reset_interval", "policy": "overage_policy"}
_OWNERS = text("SELECT id, organization_id FROM tenant WHERE id = ANY(:ids)")


class Waiting:
    """The writes that accounts wait for, each one's oldest first; an account that waits for none has none.

    Of those that are `cut` more waits than was taken.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        by_account: Mapping[str, Sequence[ControlWrite]],
        cut: Collection[str],
    ) -> None:
        self.by_account, self.cut = by_account, cut
        self._connection = connection

    async def note(
        self, applied: Collection[ControlWrite], refused: Collection[tuple[ControlWrite, str]]
    ) -> None:
        """Note what the counters have, and what they never take, and why. A definition is done with that."""
        if applied:
            await self._connection.execute(_APPLIED, {"ids": [write.id for write in applied]})
        if refused:
            ids, reasons = [write.id for write, _ in refused], [reason for _, reason in refused]
            await self._connection.execute(_REFUSED, {"ids": ids, "reasons": reasons})


class Pushes:
    """Where the pusher finds its work."""

    def __init__(self, engine: AsyncEngine, *, at_once_max: int = PUSHES_AT_ONCE_MAX) -> None:
        self._engine = engine
        self._free = asyncio.Semaphore(at_once_max)
        # Accounts that somebody here pushes; whoever waits for one looks again when some are let go.
        self._taken: set[str] = set()
        self._let_go = asyncio.Event()

    async def accounts(self, count: int, partitions: Sequence[int] | None = None) -> list[str]:
        """Accounts with writes that wait, the oldest first; of all, or of some partitions and of none."""
        of = None if partitions is None else list(partitions)
        async with self._engine.connect() as connection:
            rows = await connection.execute(_WAITING, {"n": count, "partitions": of})
            return [str(row.account) for row in rows]

    @asynccontextmanager
    async def waiting(self, accounts: Sequence[str]) -> AsyncIterator[Waiting]:
        """What those of these accounts wait for that nobody else pushes, one at least, held until the end."""
        while True:
            mine = await self._take(accounts)
            try:
                async with self._free, self._engine.begin() as connection:
                    locked = (await connection.execute(_LOCK, {"accounts": mine})).scalars().all()
                    if locked:
                        yield await _waiting(connection, locked)
                        return
            finally:
                self._taken.difference_update(mine)
                self._let_go.set()
            await asyncio.sleep(BUSY_S)

    async def _take(self, accounts: Sequence[str]) -> list[str]:
        """Wait until there is one of these that nobody here pushes, and have all that are so."""
        while self._taken.issuperset(accounts):
            self._let_go.clear()
            await self._let_go.wait()
        mine = [account for account in accounts if account not in self._taken]
        self._taken.update(mine)
        return mine


async def _waiting(connection: AsyncConnection, accounts: Sequence[str]) -> Waiting:
    """The oldest writes of each account, with what they define: who has many leaves room for all others."""
    each = max(1, WRITES_MAX // len(accounts))
    found = (await connection.execute(_TAKE, {"accounts": accounts, "n": each + 1})).mappings().all()
    rows = [row for row in found if row["turn"] <= each]
    cut = {str(row["account"]) for row in found if row["turn"] > each}
    defined = {str(row["account"]) for row in rows if row["verb"] == "define"}
    definitions_of = await named_accounts.of_accounts(connection, sorted(defined))
    tenant_ids = {_number(row) for row in rows if str(row["account"]).startswith(_TENANT)}
    owners = {
        row.id: row.organization_id for row in await connection.execute(_OWNERS, {"ids": list(tenant_ids)})
    }
    by_account: dict[str, list[ControlWrite]] = {account: [] for account in accounts}
    for row in rows:
        by_account[str(row["account"])].append(_write(row, definitions_of, owners))
    return Waiting(connection, by_account, cut)


def _write(
    row: RowMapping, definitions_of: Mapping[str, tuple[Definition, ...]], owners: Mapping[int, int]
) -> ControlWrite:
    verb, account = str(row["verb"]), str(row["account"])
    payload: dict[str, Any] = dict(row["payload"] or {})
    tenant_id = organization_id = 0
    found: tuple[Definition, ...] = ()
    terms: PlanTerms | None = None
    if verb == "define":
        found = definitions_of.get(account) or _gone(account, payload)
        organization_id = next((getattr(each, "organization_id", 0) for each in found), 0)
    elif account.startswith(_TENANT):
        tenant_id = _number(row)
        organization_id = owners[tenant_id]
    else:
        assert account.startswith("organization:"), account
        organization_id = _number(row)
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


def _number(row: RowMapping) -> int:
    return int(str(row["account"]).split(":")[1])


def _gone(account: str, payload: dict[str, Any]) -> tuple[Definition, ...]:
    """What is left to say of a key that was deleted: its subject is nobody's again."""
    kind, _, name = account.partition(":")
    if kind != "key" or "digest" not in payload:
        return ()
    owner, digest = int(payload["organization_id"]), str(payload["digest"])
    return (KeyDefinition(int(name), 0, owner, digest, Limits(), revoked=True, of_tokens=True, gone=True),)
