"""Small questions the keeper's clock asks: whose reset is due, what is charged already."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.holds import LateSettlement

_DUE = text("""
SELECT q.tenant_id, t.organization_id FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
 WHERE q.next_reset_at <= now() AND t.deleted_at IS NULL ORDER BY q.next_reset_at LIMIT :n""")
_CHARGED = text("""
SELECT request, sum(tokens)::bigint AS tokens FROM (
    SELECT request_id::text AS request, amount AS tokens FROM token_ledger
     WHERE request_id = ANY(cast(:ids AS uuid[])) AND transaction_type = 'consume'
    UNION ALL
    SELECT metadata->>'request_id', CASE direction WHEN 'OUT' THEN amount ELSE -amount END FROM token_ledger
     WHERE tenant_id = ANY(:tenants) AND transaction_type = 'adjust'
       AND metadata->>'request_id' = ANY(cast(:ids AS text[]))
    UNION ALL
    SELECT request_id::text, 0 FROM credit_transaction WHERE request_id = ANY(cast(:ids AS uuid[]))
    UNION ALL
    SELECT request_id::text, 0 FROM feature_usage WHERE request_id = ANY(cast(:ids AS uuid[]))
) AS rows GROUP BY request""")


class Sweeps:
    """Read-only questions to PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def due(self, count: int) -> Sequence[tuple[int, int]]:
        """(tenant, organization) of tenants whose next reset has come, by the last flushed row."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(_DUE, {"n": count})
            return [(row.tenant_id, row.organization_id) for row in rows]

    async def charged(self, late: Sequence[LateSettlement]) -> dict[str, int]:
        """Tokens the ledger has for each of these request ids, corrections included; absent: no row."""
        values = {
            "ids": [one.request_id for one in late],
            "tenants": list({one.caller.tenant_id for one in late}),
        }
        async with self._engine.connect() as connection:
            rows = await connection.execute(_CHARGED, values)
            return {row.request: row.tokens for row in rows}
