"""Which keepers are there, and which of them flushes a partition, in PostgreSQL.

Each says by itself what it has, in one statement: no lock, no session, and nobody who decides for others. A
partition is due to one of those who are there and reach its counters, by the order of their places, so all
come to the same, and who begins in the place of another has its part. Where two look at different moments,
it stays whose it is.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.outbox import Assigned
from gateway.errors import LedgerUnavailable
from persistence.complaint import complaint
from persistence.schema.version import NEEDED

_KEEP = text("""
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
SELECT partition, m.partition IS NOT NULL AS is_mine, d.keeper_id IS NULL OR d.keeper_id = :id AS is_due
  FROM mine AS m FULL JOIN due AS d USING (partition)
 WHERE m.partition IS NOT NULL OR d.keeper_id = :id""")
_LEAVE = text("""
WITH gone AS (DELETE FROM keeper WHERE id = :id)
DELETE FROM keeper_partition WHERE keeper_id = :id""")


class Shares:
    """What keepers say, over a connection that waits for nobody.

    A host has one keeper at a `port`; at port 0, which is any, each is in a place of its own.
    """

    def __init__(self, engine: AsyncEngine, port: int) -> None:
        self._engine, self.id, self._first = engine, uuid4(), True
        self._place = f"{socket.gethostname()}:{port}" if port else str(self.id)

    async def keep(self, reached: Collection[int], left: Collection[int], held_s: float) -> Assigned:
        """Be there for so long, flushing of these partitions, and give some away; what is whose by then.

        Who was in this place before this keeper began is there no more.
        """
        values = {
            "id": self.id, "place": self._place, "reached": sorted(reached), "given": sorted(left),
            "held_s": held_s, "first": self._first, "known": NEEDED,
        }  # fmt: skip
        found = await self._run(values)
        self._first = False
        return Assigned(
            frozenset(p for p, is_mine, is_due in found if is_mine and is_due),
            frozenset(p for p, is_mine, is_due in found if is_mine and not is_due),
            frozenset(p for p, is_mine, _ in found if not is_mine),
        )

    async def leave(self) -> None:
        """Be there no more."""
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.execute(_LEAVE, {"id": self.id})
        except (SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error

    async def _run(self, values: dict[str, object]) -> list[tuple[int, bool, bool]]:
        """One statement, which ends by itself: nobody who stands still meanwhile keeps others waiting."""
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                found = await connection.execute(_KEEP, values)
                return [(row.partition, row.is_mine, row.is_due) for row in found]
        except (SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error
