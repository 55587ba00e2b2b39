"""What PostgreSQL knows of the counters' partitions: the truth a rebuild starts from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.definitions import AccountDefinition, KeyDefinition
from gateway.core.integrity.verified import Truth
from persistence.keeper import definitions, request_rows
from persistence.keeper.budget_uses import BudgetUses
from persistence.keeper.request_rows import SINCE
from persistence.ledger.rows import is_uuid

T = TypeVar("T")

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
_VERSION = text("SELECT coalesce(max(position), 1) FROM control_write")
# The flusher's locks: whoever has them all knows that every flush begun before has ended.
_BARRIER = text("""
SELECT pg_advisory_xact_lock(7800, p) FROM unnest(cast(:partitions AS integer[])) AS p ORDER BY p""")
_NOTE = text("""
INSERT INTO partition_state (partition, run_id, epoch, verified_at, updated_at)
SELECT n.partition, :run_id, n.epoch, now(), now()
  FROM unnest(cast(:partitions AS smallint[]), cast(:epochs AS bigint[])) AS n (partition, epoch) ORDER BY 1
ON CONFLICT (partition) DO UPDATE SET run_id = excluded.run_id,
       epoch = greatest(partition_state.epoch, excluded.epoch),
       verified_at = excluded.verified_at, updated_at = excluded.updated_at""")


class Truths(BudgetUses):
    """Where the verifier reads."""

    def __init__(
        self,
        engine: AsyncEngine,
        partition_of: Callable[[int], int],
        partition_of_digest: Callable[[str], int] | None = None,
    ) -> None:
        """`partition_of_digest` places credentials; without it each is beside its organization."""
        super().__init__(engine)
        self._partition_of, self._partition_of_digest = partition_of, partition_of_digest

    async def truth(self, partitions: Sequence[int]) -> Truth:
        """All there is of these partitions, as of one moment."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            version = int((await connection.execute(_VERSION)).scalar_one())
            catalogue = await definitions.catalogue(connection)
            prices = await definitions.prices(connection)
            organizations = await definitions.organizations(connection, "true", {})
            tenants = await definitions.tenants(connection, "true", {})
            credentials = await definitions.keys(connection, "true", {})
            defined: list[AccountDefinition] = [
                *(one.definition for one in organizations),
                *(one.definition for one in tenants),
                *credentials,
                *await definitions.users(connection, "u.deleted_at IS NULL AND u.limits <> '{}'", {}),
            ]
            applied = await connection.execute(_APPLIED, {"partitions": list(partitions)})
        place = self._partition_of
        return Truth(
            _by_partition((place(one.definition.organization_id), one) for one in organizations),
            _by_partition((place(one.definition.organization_id), one) for one in tenants),
            [one for one in defined if place(one.organization_id) in partitions],
            [one for one in credentials if self._place_of(one) in partitions],
            _by_partition((row.partition, str(row.id)) for row in applied),
            catalogue,
            prices,
            version,
        )

    def _place_of(self, one: KeyDefinition) -> int:
        """The partition beside which a credential stands."""
        if self._partition_of_digest is None:
            return self._partition_of(one.organization_id)
        return self._partition_of_digest(one.digest)

    async def settled(self, held: Mapping[str, int]) -> list[str]:
        """Which of these requests have a row, by the deadlines of their holds in ms; or may have had one.

        What ended in a month that is not here any more is no call that runs. Was it never charged, then its
        settlement comes late.
        """
        ids = [one for one in held if is_uuid(one)]
        if not ids:
            return []
        async with self._engine.connect() as connection:
            since = request_rows.earliest(await request_rows.places(connection, ids))
            here = await connection.scalars(_SETTLED, {"ids": ids, "since": since})
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

    async def note(self, run_id: bytes, epochs: Mapping[int, int]) -> None:
        """Keep what partitions are verified as: no later epoch is ever one of these.

        Flushes that are under way have ended then: what is read next is not older than they are.
        """
        values = {"run_id": run_id.decode(), "partitions": list(epochs), "epochs": list(epochs.values())}
        async with self._engine.begin() as connection:
            await connection.execute(_BARRIER, {"partitions": sorted(epochs)})
            await connection.execute(_NOTE, values)


def _by_partition(placed: Iterable[tuple[int, T]]) -> dict[int, list[T]]:
    found: dict[int, list[T]] = defaultdict(list)
    for partition, one in placed:
        found[partition].append(one)
    return found
