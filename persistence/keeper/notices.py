"""What webhooks are told: found in the tables, written down once an occasion, handed to whoever delivers.

An occasion is a name that never repeats (a tenant's cycle and threshold, an invoice): looking
twice tells once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.webhook import Delivery, Outcome, retry_after_s

THRESHOLDS = (50, 80, 100)
# Credits are low at a tenth of what was last added.
CREDITS_LOW_DIVISOR = 10
ENDING_DAYS = 7
LEASE_S = 60
KEPT_DAYS = 30
# A row may become visible this long after the time written in it.
OVERLAP = timedelta(minutes=2)

# Everybody who wants to know of `news` (event, occasion, data).
_TELL = """
INSERT INTO webhook_delivery (webhook_id, event, payload, occasion)
SELECT w.id, n.event, n.data, n.occasion FROM news AS n
  JOIN webhook AS w ON w.enabled AND w.deleted_at IS NULL
   AND (w.events = '[]'::jsonb OR w.events ? n.event)
   AND (w.organization_id IS NULL OR w.organization_id = (n.data->>'organization_id')::bigint)
ON CONFLICT (webhook_id, occasion) DO NOTHING"""


def _told(news: str) -> TextClause:
    return text(f"{news}{_TELL}")


_QUOTAS = _told("""
WITH news AS (
    SELECT 'quota.' || p.percent AS event,
           format('quota:%s:%s:%s', q.tenant_id, q.cycle, p.percent) AS occasion,
           jsonb_build_object('tenant_id', q.tenant_id, 'organization_id', t.organization_id,
               'percent', p.percent, 'tokens_used', q.tokens_used, 'tokens_remaining', q.tokens_remaining,
               'cycle', q.cycle, 'next_reset_at', q.next_reset_at) AS data
      FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
     CROSS JOIN unnest(cast(:thresholds AS bigint[])) AS p (percent)
     WHERE q.updated_at >= :since AND q.plan_id IS NOT NULL AND q.tokens_remaining IS NOT NULL
       AND q.tokens_used * 100 >= p.percent * (q.tokens_used + q.tokens_remaining)
)""")
_BLOCKS = _told("""
WITH changed AS (
    UPDATE tenant_quota SET noticed_blocked = is_blocked WHERE is_blocked <> noticed_blocked
    RETURNING tenant_id, is_blocked, manual_block, tokens_remaining
), news AS (
    SELECT CASE WHEN c.is_blocked THEN 'tenant.blocked' ELSE 'tenant.unblocked' END AS event,
           'blocked:' || gen_random_uuid() AS occasion,
           jsonb_build_object('tenant_id', c.tenant_id, 'organization_id', t.organization_id,
               'manual_block', c.manual_block, 'tokens_remaining', c.tokens_remaining) AS data
      FROM changed AS c JOIN tenant AS t ON t.id = c.tenant_id
)""")
_CREDITS = _told("""
WITH news AS (
    SELECT 'credits.low' AS event, format('credits:%s:%s', o.id, a.id) AS occasion,
           jsonb_build_object('organization_id', o.id, 'credit_balance', o.credit_balance,
               'last_added', a.credits_added) AS data
      FROM organization AS o
     CROSS JOIN LATERAL (
           SELECT c.id, c.credits_added FROM credit_addition AS c
             JOIN credit_posting AS p ON p.organization_id = o.id AND p.credit_addition_id = c.id
              AND p.kind = 'addition'
            WHERE c.organization_id = o.id AND c.credits_added > 0 ORDER BY c.id DESC LIMIT 1) AS a
     WHERE o.deleted_at IS NULL AND o.credit_balance * :divisor <= a.credits_added
)""")
_ENDING = _told("""
WITH news AS (
    SELECT 'subscription.ending' AS event, format('ending:%s:%s', s.id, s.end_date) AS occasion,
           jsonb_build_object('organization_subscription_id', s.id, 'organization_id', s.organization_id,
               'plan_id', s.plan_id, 'end_date', s.end_date) AS data
      FROM organization_subscription AS s
     WHERE s.status = 'active' AND s.end_date <= cast(:until AS date)
)""")
_INVOICE = _told("""
WITH news AS (
    SELECT 'invoice.finalized' AS event, 'invoice:' || i.id AS occasion,
           jsonb_build_object('invoice_id', i.id, 'organization_id', i.organization_id, 'kind', i.kind,
               'number', i.number, 'currency', i.currency, 'total_amount', trim_scale(i.total_amount)::text)
               AS data
      FROM invoice AS i WHERE i.id = :id
)""")
_NOBODY = text("SELECT NOT EXISTS (SELECT FROM webhook WHERE enabled AND deleted_at IS NULL)")
_PRUNE = text("""
DELETE FROM webhook_delivery
 WHERE state <> 'pending' AND created_at < now() - make_interval(days => :days)""")

# An attempt is counted before it is made: a sender that dies meanwhile is as good as no answer.
_TAKE = text("""
UPDATE webhook_delivery AS d
   SET attempts = d.attempts + 1, next_attempt_at = now() + make_interval(secs => :lease)
  FROM (SELECT id FROM webhook_delivery WHERE state = 'pending' AND next_attempt_at <= now()
         ORDER BY next_attempt_at LIMIT :n FOR UPDATE SKIP LOCKED) AS due,
       webhook AS w
 WHERE d.id = due.id AND w.id = d.webhook_id
RETURNING d.id, d.event, d.payload, d.created_at, d.attempts, w.url, w.secret,
          w.enabled AND w.deleted_at IS NULL AS wanted""")
_DONE = text("""
UPDATE webhook_delivery
   SET state = :state, response_status = :status, error = :error,
       delivered_at = CASE WHEN :state = 'delivered' THEN now() END,
       next_attempt_at = now() + make_interval(secs => :retry)
 WHERE id = :id""")


def tell_invoice(connection: Connection, invoice_id: int) -> None:
    """Write the news of a finalized invoice in the transaction that finalizes it."""
    connection.execute(_INVOICE, {"id": invoice_id})


class Notices:
    """News, and deliveries of it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def notice(self, since: datetime, now: datetime) -> None:
        """Write down what happened since, and what stands to be told now."""
        async with self._engine.begin() as connection:
            if (await connection.execute(_NOBODY)).scalar_one():
                return
            await connection.execute(_QUOTAS, {"since": since - OVERLAP, "thresholds": list(THRESHOLDS)})
            await connection.execute(_BLOCKS)
            await connection.execute(_CREDITS, {"divisor": CREDITS_LOW_DIVISOR})
            await connection.execute(_ENDING, {"until": now.date() + timedelta(days=ENDING_DAYS)})
            await connection.execute(_PRUNE, {"days": KEPT_DAYS})

    async def claim_due(self, count: int) -> Sequence[Delivery]:
        """Deliveries that are due, each for one sender; an attempt of each is counted."""
        async with self._engine.begin() as connection:
            rows = (await connection.execute(_TAKE, {"n": count, "lease": LEASE_S})).all()
            for row in rows:
                if not row.wanted:
                    await connection.execute(
                        _DONE, _result(row.id, Outcome(None, "the webhook is gone"), None)
                    )
        return [
            Delivery(row.id, row.url, row.secret, row.event, row.payload, row.created_at, row.attempts)
            for row in rows
            if row.wanted
        ]

    async def done(self, delivery: Delivery, outcome: Outcome) -> None:
        """Keep what came of an attempt."""
        retry_s = None if outcome.delivered else retry_after_s(delivery.attempts)
        async with self._engine.begin() as connection:
            await connection.execute(_DONE, _result(delivery.id, outcome, retry_s))


def _result(delivery_id: int, outcome: Outcome, retry_s: float | None) -> dict[str, Any]:
    undelivered = "failed" if retry_s is None else "pending"
    return {
        "id": delivery_id,
        "state": "delivered" if outcome.delivered else undelivered,
        "status": outcome.status,
        "error": outcome.error,
        "retry": retry_s or 0.0,
    }
