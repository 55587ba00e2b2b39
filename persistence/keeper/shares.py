"""The shares of keepers in work that one of them does at a time."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any
from uuid import uuid4

from sqlalchemy import CursorResult, TextClause
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.flush_batch import PartitionAssignment
from gateway.errors import LedgerUnavailable
from persistence.engine import looking
from persistence.error_mapping import complaint
from persistence.queries import query
from persistence.schema.standing import NEEDED

# A digest of the other keepers' registrations.
_OTHERS = "coalesce(md5(string_agg(concat_ws(' ', id, place, reached), ',' ORDER BY id)), '')"
_KEEP = query("shares.keep", "Register a keeper and share the partitions", f"""
WITH here AS (
    INSERT INTO keeper (id, place, reached, until, schema_version)
    VALUES (:id, :place, cast(:reached AS smallint[]),
            clock_timestamp() + make_interval(secs => :held_s), :known)
    ON CONFLICT (id) DO UPDATE SET reached = excluded.reached, until = excluded.until
), gone AS (
    DELETE FROM keeper WHERE id <> :id AND (until <= clock_timestamp() OR :first AND place = :place)
    RETURNING id
), other AS MATERIALIZED (
    SELECT id, place, reached FROM keeper
     WHERE id <> :id AND until > clock_timestamp() AND NOT (:first AND place = :place)
), due AS MATERIALIZED (
    SELECT partition, (array_agg(id ORDER BY place, id))[1 + partition % count(*)::integer] AS keeper_id
      FROM (SELECT cast(:id AS uuid) AS id, cast(:place AS text) AS place,
                   unnest(cast(:reached AS smallint[])) AS partition
             UNION ALL SELECT id, place, unnest(reached) FROM other) AS there
     GROUP BY partition
), given AS (
    DELETE FROM keeper_partition AS k USING due AS d
     WHERE k.keeper_id = :id AND k.partition = ANY(cast(:given AS smallint[]))
       AND d.partition = k.partition AND d.keeper_id <> :id
    RETURNING k.partition
), taken AS (
    INSERT INTO keeper_partition AS k (partition, keeper_id)
    SELECT partition, keeper_id FROM due WHERE keeper_id = :id ORDER BY partition
    ON CONFLICT (partition) DO UPDATE SET keeper_id = excluded.keeper_id
     WHERE k.keeper_id <> :id AND NOT EXISTS (SELECT FROM other AS o WHERE o.id = k.keeper_id)
    RETURNING k.partition
), mine AS (
    SELECT partition FROM keeper_partition
     WHERE keeper_id = :id AND partition NOT IN (SELECT partition FROM given)
     UNION SELECT partition FROM taken
)
SELECT partition, m.partition IS NOT NULL AS is_mine, d.keeper_id IS NULL OR d.keeper_id = :id AS is_due,
       (SELECT {_OTHERS} FROM other) AS others
  FROM mine AS m FULL JOIN due AS d USING (partition)
 WHERE m.partition IS NOT NULL OR d.keeper_id = :id""")  # fmt: skip
# A renewal if nothing has changed since the last registration of all keepers.
_RENEW = query("shares.renew", "Renew the registration of a keeper", f"""
UPDATE keeper SET until = clock_timestamp() + make_interval(secs => :held_s)
 WHERE id = :id AND NOT EXISTS (SELECT FROM keeper WHERE until <= clock_timestamp())
   AND (SELECT {_OTHERS} FROM keeper WHERE id <> :id) = :others
   AND ARRAY(SELECT partition FROM keeper_partition WHERE keeper_id = :id ORDER BY partition)
       = cast(:own AS smallint[])""")  # fmt: skip
_LEAVE = query("shares.leave", "Delete the registration of a keeper", """
WITH gone AS (DELETE FROM keeper WHERE id = :id)
DELETE FROM keeper_partition WHERE keeper_id = :id""")  # fmt: skip


class KeeperShares:
    """Registers this keeper, and its partitions, over a connection that waits for no lock.

    A host has one keeper at a `port`; keepers with port 0 (any) have a place each.
    """

    def __init__(self, engine: AsyncEngine, port: int) -> None:
        self._engine, self.id, self._first = engine, uuid4(), True
        self._place = f"{socket.gethostname()}:{port}" if port else str(self.id)
        # While no partition moves: the partitions reached, the digest of others, and the assignment.
        self._settled: tuple[frozenset[int], str, PartitionAssignment] | None = None

    async def keep(
        self, reached: Collection[int], left: Collection[int], held_s: float
    ) -> PartitionAssignment:
        """Register this keeper as the flusher of the partitions in `reached` for `held_s` seconds.

        The partitions in `left` are released, and a registration of an earlier keeper in this place is
        deleted. Return the partitions assigned to this keeper and to others.
        """
        if self._settled is not None and not left and frozenset(reached) == self._settled[0]:
            _, others, assignment = self._settled
            values = {"id": self.id, "held_s": held_s, "others": others, "own": sorted(assignment.own)}
            if (await self._run(_RENEW, values)).rowcount:
                return assignment
        self._settled = None
        values = {
            "id": self.id, "place": self._place, "reached": sorted(reached), "given": sorted(left),
            "held_s": held_s, "first": self._first, "known": NEEDED,
        }  # fmt: skip
        found = (await self._run(_KEEP, values)).all()
        self._first = False
        assignment = PartitionAssignment(
            frozenset(row.partition for row in found if row.is_mine and row.is_due),
            frozenset(row.partition for row in found if row.is_mine and not row.is_due),
            frozenset(row.partition for row in found if not row.is_mine),
        )
        if assignment.own and not (left or assignment.leaving or assignment.lacking):
            self._settled = frozenset(reached), found[0].others, assignment
        return assignment

    async def leave(self) -> None:
        try:
            async with looking(self._engine) as connection:
                await connection.execute(_LEAVE, {"id": self.id})
        except (SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error

    async def _run(self, statement: TextClause, values: dict[str, object]) -> CursorResult[Any]:
        """Run one statement in autocommit, so that a stalled keeper blocks no other."""
        try:
            async with looking(self._engine) as connection:
                return await connection.execute(statement, values)
        except (SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error
