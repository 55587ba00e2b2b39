"""What PostgreSQL knows of the counters' partitions: the truth a rebuild starts from.

It is read some partitions at a time: whose organizations those are follows from their ids alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.definitions import AccountDefinition, KeyDefinition
from gateway.core.integrity.verified import Compared, Everybodys, Places, Truth
from gateway.core.model import PARTITIONS
from persistence.keeper import definitions, request_rows
from persistence.keeper.budget_uses import BudgetUses
from persistence.keeper.request_rows import SINCE
from persistence.ledger.rows import is_uuid

# Credentials that are read at once where all of them are looked through.
CREDENTIALS_MAX = 5_000
# Definitions behind a position that are looked at: where more were written, everybody is.
CHANGES_MAX = 20_000

_APPLIED = text(
    "SELECT id, partition FROM control_write WHERE state = 'applied' AND partition = ANY(:partitions)"
)
_AGAIN = text(
    "UPDATE control_write SET state = 'pending' WHERE state = 'applied' AND id = ANY(cast(:ids AS uuid[]))"
)
_NOTED = text("SELECT partition, run_id, epoch FROM partition_state WHERE run_id IS NOT NULL")
_SETTLED = text(f"""
SELECT request_id::text AS request FROM token_ledger
 WHERE request_id = ANY(cast(:ids AS uuid[])) AND created_at >= {SINCE}
 UNION SELECT request_id::text FROM credit_transaction
        WHERE request_id = ANY(cast(:ids AS uuid[])) AND "timestamp" >= {SINCE}
 UNION SELECT request_id::text FROM feature_usage
        WHERE request_id = ANY(cast(:ids AS uuid[])) AND "timestamp" >= {SINCE}""")  # noqa: S608  # our own words
_WORKERS = text("SELECT worker_slot FROM gateway_worker")
_CAME = text(
    "INSERT INTO gateway_worker (worker_slot) SELECT unnest(cast(:worker_slots AS text[]))"
    " ON CONFLICT DO NOTHING"
)
_GONE = text("DELETE FROM gateway_worker WHERE worker_slot = ANY(:worker_slots)")
_ORGANIZATIONS = text("SELECT id FROM organization")
_CREDENTIALS = text(
    "SELECT k.id AS key_id, k.digest, t.organization_id"
    " FROM api_key AS k JOIN tenant AS t ON t.id = k.tenant_id"
)
# Who has an account that was defined behind a position, and which keys were. What moves an account is an
# entry of its partition too: data that goes on has it, or it is stored nowhere, and then pushed again.
_DEFINED = "FROM control_write WHERE verb = 'define' AND position > :position"
_CHANGES = text(f"SELECT count(*) FROM (SELECT {_DEFINED} LIMIT :n) AS w")  # noqa: S608  # our own words
_CHANGED = text(f"""
WITH w AS (SELECT DISTINCT split_part(account, ':', 1) AS kind, split_part(account, ':', 2)::bigint AS id
             {_DEFINED} AND account ~ '^(organization|tenant|key|user):[0-9]{{1,18}}(:|$)')
SELECT id AS organization_id, NULL::bigint AS key_id, NULL AS digest FROM w WHERE kind = 'organization'
UNION ALL SELECT t.organization_id, NULL, NULL FROM w JOIN tenant AS t ON t.id = w.id
           WHERE kind IN ('tenant', 'user')
UNION ALL SELECT t.organization_id, k.id, k.digest
            FROM w JOIN api_key AS k ON k.id = w.id JOIN tenant AS t ON t.id = k.tenant_id
           WHERE kind = 'key'""")  # noqa: S608  # our own words
_LIMITED = "u.organization_id = ANY(:ids) AND u.deleted_at IS NULL AND u.limits <> '{}'"
_VERSION = text("SELECT coalesce(max(position), 1) FROM control_write")
# A transaction that was under way while another one wrote may have a lower position: none is for so long.
_POSITION = text("""
SELECT coalesce((SELECT position FROM control_write WHERE created_at < now() - interval '10 minutes'
                  ORDER BY position DESC LIMIT 1), 0)""")
_COMPARED = text("""
SELECT partition, compared_run_id, compared_epoch, compared_position FROM partition_state
 WHERE compared_position IS NOT NULL AND NOT older""")
_NOTE_COMPARED = text("""
UPDATE partition_state AS s
   SET compared_run_id = :run_id, compared_epoch = n.epoch, compared_position = :position, updated_at = now()
  FROM unnest(cast(:partitions AS smallint[]), cast(:epochs AS bigint[])) AS n (partition, epoch)
 WHERE s.partition = n.partition AND s.run_id = :run_id AND s.epoch = n.epoch""")
# The flusher's locks: whoever has them all knows that every flush begun before has ended.
_BARRIER = text("""
SELECT pg_advisory_xact_lock(7800, p) FROM unnest(cast(:partitions AS integer[])) AS p ORDER BY p""")
_NOTE = text("""
INSERT INTO partition_state (partition, run_id, epoch, verified_at, updated_at)
SELECT n.partition, :run_id, n.epoch, now(), now()
  FROM unnest(cast(:partitions AS smallint[]), cast(:epochs AS bigint[])) AS n (partition, epoch) ORDER BY 1
ON CONFLICT (partition) DO UPDATE SET run_id = excluded.run_id, epoch = excluded.epoch,
       verified_at = excluded.verified_at, updated_at = excluded.updated_at
 WHERE excluded.epoch > partition_state.epoch
    OR (excluded.epoch = partition_state.epoch AND excluded.run_id = partition_state.run_id)
RETURNING partition""")


class Truths(BudgetUses):
    """Where the verifier reads."""

    def __init__(
        self,
        engine: AsyncEngine,
        partition_of: Callable[[int], int],
        partition_of_digest: Callable[[str], int] | None = None,
        *,
        credentials_max: int = CREDENTIALS_MAX,
        changes_max: int = CHANGES_MAX,
    ) -> None:
        """`partition_of_digest` places credentials; without it all are beside their organizations."""
        super().__init__(engine)
        self._partition_of, self._partition_of_digest = partition_of, partition_of_digest
        self._credentials_max, self._changes_max = credentials_max, changes_max

    async def everybodys(self) -> Everybodys:
        """Catalogue and prices."""
        async with self._at_one_moment() as (connection, version):
            catalogue, prices = await definitions.catalogue(connection), await definitions.prices(connection)
            position = int((await connection.execute(_POSITION)).scalar_one())
        return Everybodys(catalogue, prices, version, position)

    async def places(self, partitions: Collection[int], known: Mapping[int, int]) -> Places:
        """Who is to be looked at in these partitions: of those `known` up to a position, who changed.

        Where more was changed than is looked at, all.
        """
        found, credentials = dict[int, set[int]](), set[int]()
        async with self._engine.connect() as connection:
            if known and await self._too_many(connection, min(known.values())):
                known = {}
            whole = frozenset(partitions) - known.keys()
            if whole:
                for (organization_id,) in await connection.execute(_ORGANIZATIONS):
                    if (partition := self._partition_of(organization_id)) in whole:
                        found.setdefault(partition, set()).add(organization_id)
            if 0 < len(whole) < PARTITIONS:
                options = {"yield_per": self._credentials_max}
                async with connection.stream(_CREDENTIALS, execution_options=options) as result:
                    async for some in result.partitions():
                        credentials |= self._standing(some, whole, but_of=whole)
            if known:
                rows = await connection.execute(_CHANGED, {"position": min(known.values())})
                changed = rows.all()
                for row in changed:
                    if (partition := self._partition_of(row.organization_id)) in known:
                        found.setdefault(partition, set()).add(row.organization_id)
                written = [row for row in changed if row.key_id is not None]
                credentials |= self._standing(written, known, but_of=partitions)
        return Places({one: sorted(its) for one, its in found.items()}, sorted(credentials))

    async def _too_many(self, connection: AsyncConnection, position: int) -> bool:
        values = {"position": position, "n": self._changes_max + 1}
        return int((await connection.execute(_CHANGES, values)).scalar_one()) > self._changes_max

    def _standing(
        self, keys: Sequence[Row[Any]], there: Container[int], *, but_of: Container[int]
    ) -> set[int]:
        """The keys whose credentials stand in some partitions, but for those of organizations of others."""
        if self._partition_of_digest is None:
            return set()
        return {
            row.key_id
            for row in keys
            if self._partition_of_digest(row.digest) in there
            and self._partition_of(row.organization_id) not in but_of
        }

    async def compared(self) -> dict[int, Compared]:
        """What partitions were compared as last, but for those that rows were lost of."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(_COMPARED)
            return {
                one.partition: Compared(
                    one.compared_run_id.encode(), one.compared_epoch, one.compared_position
                )
                for one in rows
            }

    async def note_compared(self, run_id: bytes, epochs: Mapping[int, int], position: int) -> None:
        """Keep that partitions' data has all that is defined up to a position, as they are verified now."""
        values = {
            "run_id": run_id.decode(), "partitions": list(epochs), "epochs": list(epochs.values()),
            "position": position,
        }  # fmt: skip
        async with self._engine.begin() as connection:
            await connection.execute(_NOTE_COMPARED, values)

    async def truth(self, organizations: Mapping[int, Sequence[int]]) -> dict[int, Truth]:
        """All there is of some partitions, whose organizations these are; as of one moment."""
        ids = {"ids": [one for its in organizations.values() for one in its]}
        async with self._at_one_moment() as (connection, version):
            applied = await connection.execute(_APPLIED, {"partitions": list(organizations)})
            found = {one: Truth([], [], [], [], [], version) for one in organizations}
            for row in applied:
                found[row.partition].applied.append(str(row.id))
            if not ids["ids"]:
                return found
            for organization in await definitions.organizations(connection, "id = ANY(:ids)", ids):
                self._its(found, organization.definition).organizations.append(organization)
            for tenant in await definitions.tenants(connection, "t.organization_id = ANY(:ids)", ids):
                self._its(found, tenant.definition).tenants.append(tenant)
            for key in await definitions.keys(connection, "t.organization_id = ANY(:ids)", ids):
                self._its(found, key).keys.append(key)
            for user in await definitions.users(connection, _LIMITED, ids):
                self._its(found, user).users.append(user)
        return found

    def _its(self, found: Mapping[int, Truth], definition: AccountDefinition) -> Truth:
        return found[self._partition_of(definition.organization_id)]

    async def credentials(self, keys: Sequence[int]) -> list[KeyDefinition]:
        """These keys."""
        async with self._engine.connect() as connection:
            return await definitions.keys(connection, "k.id = ANY(:ids)", {"ids": list(keys)})

    @asynccontextmanager
    async def _at_one_moment(self) -> AsyncIterator[tuple[AsyncConnection, int]]:
        """A connection that sees nothing of what comes later, and the version of what it sees."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection, int((await connection.execute(_VERSION)).scalar_one())

    async def settled(self, held: Mapping[str, int]) -> list[str]:
        """Which of these requests have a row, by the deadlines of their holds in ms; or may have had one.

        What ended in a month that is not here any more is no call that runs. Was it never charged, then its
        settlement comes late.
        """
        ids = [one for one in held if is_uuid(one)]
        if not ids:
            return []
        async with self._engine.connect() as connection:
            here: set[str] = set()
            for some, since in request_rows.by_month(await request_rows.places(connection, ids)):
                here.update(await connection.scalars(_SETTLED, {"ids": some, "since": since}))
            return sorted({*here, *await request_rows.ended_before(connection, held)})

    async def push_again(self, ids: Sequence[str]) -> None:
        """Have these applied control writes wait again."""
        async with self._engine.begin() as connection:
            await connection.execute(_AGAIN, {"ids": list(ids)})

    async def noted(self) -> dict[int, tuple[bytes, int]]:
        """The last run id and epoch of each partition; absent: never verified."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(_NOTED)
            return {row.partition: (row.run_id.encode(), row.epoch) for row in rows}

    async def workers(self) -> list[str]:
        """The numbers of all workers any keeper knew last."""
        async with self._engine.connect() as connection:
            return list(await connection.scalars(_WORKERS))

    async def keep_workers(self, came: Collection[str], gone: Collection[str]) -> None:
        """Keep who is there, for a keeper that starts after a loss."""
        async with self._engine.begin() as connection:
            await connection.execute(_CAME, {"worker_slots": sorted(came)})
            await connection.execute(_GONE, {"worker_slots": sorted(gone)})

    async def note(self, run_id: bytes, epochs: Mapping[int, int]) -> frozenset[int]:
        """Keep what partitions are verified as: no later epoch is ever one of these. Answers which are.

        An epoch is one history's: where another one has it, or a later one, that stays. Flushes that are
        under way have ended then: what is read next is not older than they are.
        """
        values = {"run_id": run_id.decode(), "partitions": list(epochs), "epochs": list(epochs.values())}
        async with self._engine.begin() as connection:
            await connection.execute(_BARRIER, {"partitions": sorted(epochs)})
            return frozenset(await connection.scalars(_NOTE, values))
