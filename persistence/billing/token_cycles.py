"""Which cycle of a tenant's tokens a moment lies in, and by which plan's policy it was used."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

from gateway.core.billing.early_use import CARRY

# The cycle a moment lies in, as far as it is stored; none before the first one.
_CYCLE = text("""
SELECT cycle FROM token_ledger WHERE tenant_id = :tenant AND transaction_type = 'reset' AND created_at <= :at
 ORDER BY seq DESC LIMIT 1""")
# The policy of the plan that was in force at a moment, as far as it is stored.
_POLICY = text("""
SELECT (SELECT v.overage_policy FROM token_plan_price AS v
         WHERE v.plan_id = (w.payload->>'plan_id')::bigint
         ORDER BY v.since <= :at DESC, CASE WHEN v.since <= :at THEN v.since END DESC, v.since LIMIT 1)
  FROM token_ledger AS l JOIN control_write AS w ON w.id = l.control_write_id AND w.verb = 'plan'
 WHERE l.tenant_id = :tenant AND l.transaction_type <> 'consume' AND l.created_at <= :at
 ORDER BY l.seq DESC LIMIT 1""")


def in_cycle(
    connection: Connection,
    now: datetime,
    tenant_id: int,
    quota: tuple[int | None, datetime | None],
    at: datetime,
) -> bool:
    """Whether a moment lies in the cycle of a quota that runs: its number, and when it is reset."""
    cycle, ended = quota
    if cycle is None:
        return True
    if ended is not None and at < ended <= now:  # its reset is on its way
        return False
    found = connection.execute(_CYCLE, {"tenant": tenant_id, "at": at}).scalar()
    return found is None or found == cycle


def carried(connection: Connection, tenant_id: int, at: datetime) -> bool:
    """Whether the plan of a moment carried its debt on: what was used by another one is owed by that."""
    policy = connection.execute(_POLICY, {"tenant": tenant_id, "at": at}).scalar()
    return policy is None or policy == CARRY
