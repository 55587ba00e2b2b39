"""Which cycle of a tenant's tokens a moment lies in, and by which plan's policy it was used."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, text

from gateway.core.billing.early_use import CARRY

# The cycle that runs, and the one a moment lies in, as far as they are stored; none before the first one. A
# flush writes both at once, so one statement reads them.
_CYCLE = text("""
SELECT q.cycle, q.next_reset_at,
       (SELECT cycle FROM token_ledger WHERE tenant_id = q.tenant_id AND transaction_type = 'reset'
           AND created_at <= :at ORDER BY seq DESC LIMIT 1) AS found
  FROM tenant_quota AS q WHERE q.tenant_id = :tenant""")
# Plans from the one on that was in force at a moment, as far as they are stored: whether all carry, and no
# reset has forgiven debt since.
_CARRIED = text("""
WITH plans AS (
    SELECT l.seq, l.created_at, (w.payload->>'plan_id')::bigint AS plan_id
      FROM token_ledger AS l JOIN control_write AS w ON w.id = l.control_write_id AND w.verb = 'plan'
     WHERE l.tenant_id = :tenant AND l.transaction_type <> 'consume'
), policies AS (
    SELECT (SELECT v.overage_policy FROM token_plan_price AS v WHERE v.plan_id = p.plan_id
             ORDER BY v.since <= n.at DESC, CASE WHEN v.since <= n.at THEN v.since END DESC, v.since LIMIT 1)
           AS policy
      FROM plans AS p CROSS JOIN LATERAL (SELECT greatest(p.created_at, :at) AS at) AS n
     WHERE p.seq >= coalesce((SELECT max(seq) FROM plans WHERE created_at <= :at), 0)
)
SELECT coalesce(bool_and(policy IS NOT DISTINCT FROM :carry), true)
       AND NOT EXISTS (SELECT FROM token_ledger WHERE tenant_id = :tenant AND transaction_type = 'reset'
                          AND created_at > :at AND metadata->'forgiven' IS NOT NULL)
  FROM policies""")
# Whether a plan was in force at a moment: by the ledger, or by a subscription that counts tokens without a
# limit. Whoever never had one uses what costs nothing. Of rows that were archived nobody knows: it was.
_BORNE = text("""
SELECT coalesce((SELECT w.payload->>'plan_id' IS NOT NULL FROM token_ledger AS l
                   JOIN control_write AS w ON w.id = l.control_write_id AND w.verb = 'plan'
                  WHERE l.tenant_id = t.id AND l.transaction_type <> 'consume' AND l.created_at <= :at
                  ORDER BY l.seq DESC LIMIT 1),
                (SELECT l.seq > 1 FROM token_ledger AS l WHERE l.tenant_id = t.id
                  ORDER BY l.seq LIMIT 1), false)
    OR EXISTS (SELECT FROM subscription_segment AS s JOIN subscription_plan AS p ON p.id = s.plan_id
                WHERE s.organization_id = t.organization_id AND p.token_plan_id IS NULL
                  AND s.start_date <= :day AND (s.end_date IS NULL OR s.end_date > :day))
    OR NOT EXISTS (SELECT FROM token_ledger AS l
                     JOIN control_write AS w ON w.id = l.control_write_id AND w.verb = 'plan'
                    WHERE l.tenant_id = t.id AND l.transaction_type <> 'consume')
       AND (coalesce(t.plan_id, t.inherited_plan_id) IS NOT NULL
            OR NOT EXISTS (SELECT FROM subscription_segment AS s WHERE s.organization_id = t.organization_id))
  FROM tenant AS t WHERE t.id = :tenant""")


def in_cycle(connection: Connection, now: datetime, tenant_id: int, at: datetime) -> bool:
    """Whether a moment lies in the cycle of a tenant's quota that runs."""
    quota = connection.execute(_CYCLE, {"tenant": tenant_id, "at": at}).first()
    if quota is None:
        return True
    if quota.next_reset_at is not None and at < quota.next_reset_at <= now:  # its reset is on its way
        return False
    return quota.found is None or quota.found == quota.cycle


def carried(connection: Connection, tenant_id: int, at: datetime) -> bool:
    """Whether debt of a moment is carried on up to now: else the plan that was in force then owes for it."""
    here = {"tenant": tenant_id, "at": at, "carry": CARRY}
    return bool(connection.execute(_CARRIED, here).scalar_one())


def is_borne(connection: Connection, tenant_id: int, at: datetime) -> bool:
    """Whether tokens that move no quota of now are of a plan that was in force when they were used."""
    here = {"tenant": tenant_id, "at": at, "day": at.astimezone(UTC).date()}
    return bool(connection.execute(_BORNE, here).scalar())
