"""Which tenants are to be told of a zone's clocks, some at a time: each once for what is told.

What was told, and up to which tenant, is kept by zone, so that nobody looks at tenants while clocks do not
change, and a keeper that ends goes on where it was. Of a zone of which nothing was told all are: its plans
may be older than its clocks are now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.zones import Clock

# Clocks of UTC never change.
_ZONES = text("""
SELECT DISTINCT time_zone FROM token_plan WHERE deleted_at IS NULL AND time_zone <> 'UTC' ORDER BY 1""")
_TOLD = text("""
SELECT FROM zone_clock WHERE time_zone = :zone AND tenant_id IS NULL
   AND ("offset", turns_at, offset_after) = (:offset, :turns_at, :offset_after)""")
# Another keeper that is at it is waited for. What is new begins at the first tenant.
_BEGIN = text("""
INSERT INTO zone_clock AS z (time_zone, "offset", turns_at, offset_after, tenant_id)
VALUES (:zone, :offset, :turns_at, :offset_after, 0)
ON CONFLICT (time_zone) DO UPDATE SET
       "offset" = excluded."offset", turns_at = excluded.turns_at, offset_after = excluded.offset_after,
       tenant_id = CASE WHEN (z."offset", z.turns_at, z.offset_after)
                           = (excluded."offset", excluded.turns_at, excluded.offset_after)
                        THEN z.tenant_id ELSE 0 END
RETURNING tenant_id""")
_TENANTS = text("""
SELECT t.id, t.organization_id FROM tenant AS t
  JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id)
 WHERE p.time_zone = :zone AND t.deleted_at IS NULL AND t.id > :after ORDER BY t.id LIMIT :n""")
_DEFINE = text("""
INSERT INTO control_write (id, partition, account, verb, payload)
VALUES (:id, :partition, :account, 'define', '{}')""")
_UP_TO = text("UPDATE zone_clock SET tenant_id = :tenant WHERE time_zone = :zone")


class ToldClocks:
    """What the counters were told of clocks."""

    def __init__(self, engine: AsyncEngine, partition_of: Callable[[int], int]) -> None:
        self._engine = engine
        self._partition_of = partition_of

    async def zones(self) -> Sequence[str]:
        """Time zones of token plans."""
        async with self._engine.connect() as connection:
            return (await connection.scalars(_ZONES)).all()

    async def tell(self, time_zone: str, clock: Clock, count: int) -> int:
        """Have tenants of a zone defined again that were not told of this clock; answers how many."""
        values = {"zone": time_zone, **clock._asdict()}
        async with self._engine.connect() as connection:
            if (await connection.execute(_TOLD, values)).first() is not None:
                return 0
        async with self._engine.begin() as connection:
            after = (await connection.execute(_BEGIN, values)).scalar_one()
            if after is None:
                return 0
            found = {"zone": time_zone, "after": after, "n": count}
            tenants = (await connection.execute(_TENANTS, found)).all()
            if tenants:
                await connection.execute(_DEFINE, [self._definition(*one) for one in tenants])
            last = tenants[-1].id if len(tenants) == count else None
            await connection.execute(_UP_TO, {"zone": time_zone, "tenant": last})
            return len(tenants)

    def _definition(self, tenant_id: int, organization_id: int) -> dict[str, object]:
        return {
            "id": uuid4(),
            "partition": self._partition_of(organization_id),
            "account": f"tenant:{tenant_id}",
        }
