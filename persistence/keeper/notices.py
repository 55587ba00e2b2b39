"""What webhooks are told: found in the tables where it is, each second; what is only coming, each minute."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.keeper import budget_news, sudden_news
from persistence.keeper.news import told

THRESHOLDS = (50, 80, 100)
# Credits are low at a tenth of what was last added.
CREDITS_LOW_DIVISOR = 10
ENDING_DAYS = 7
KEPT_DAYS = 30
# What may stand for longer is remembered for longer, or it would be told again.
KEPT_LONG_DAYS = 400
# A row may become visible this long after the time written in it.
OVERLAP = timedelta(minutes=2)

_QUOTAS = told("""
WITH news AS (
    SELECT 'quota.' || p.percent AS event,
           format('quota:%s:%s:%s', q.tenant_id, q.cycle, p.percent) AS occasion,
           jsonb_build_object('organization_id', t.organization_id,
               'tenant_id', q.tenant_id, 'tenant', t.name,
               'percent', p.percent, 'tokens_used', q.tokens_used, 'tokens_remaining', q.tokens_remaining,
               'cycle', q.cycle, 'next_reset_at', q.next_reset_at) AS data
      FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
     CROSS JOIN unnest(cast(:thresholds AS bigint[])) AS p (percent)
     WHERE q.updated_at >= :since AND q.plan_id IS NOT NULL AND q.tokens_remaining IS NOT NULL
       AND q.tokens_used * 100 >= p.percent * (q.tokens_used + q.tokens_remaining)
)""")
_BLOCKS = told("""
WITH changed AS (
    UPDATE tenant_quota SET noticed_blocked = is_blocked WHERE is_blocked <> noticed_blocked
    RETURNING tenant_id, is_blocked, manual_block, tokens_remaining
), news AS (
    SELECT CASE WHEN c.is_blocked THEN 'tenant.blocked' ELSE 'tenant.unblocked' END AS event,
           'blocked:' || gen_random_uuid() AS occasion,
           jsonb_build_object('organization_id', t.organization_id,
               'tenant_id', c.tenant_id, 'tenant', t.name,
               'manual_block', c.manual_block, 'tokens_remaining', c.tokens_remaining) AS data
      FROM changed AS c JOIN tenant AS t ON t.id = c.tenant_id
)""")
_CREDITS = told("""
WITH news AS (
    SELECT 'credits.low' AS event, format('credits:%s:%s', o.id, a.id) AS occasion,
           jsonb_build_object('organization_id', o.id, 'organization', o.name,
               'credit_balance', o.credit_balance, 'last_added', a.credits_added) AS data
      FROM organization AS o
     CROSS JOIN LATERAL (
           SELECT c.id, c.credits_added FROM credit_addition AS c
             JOIN credit_posting AS p ON p.organization_id = o.id AND p.credit_addition_id = c.id
              AND p.kind = 'addition'
            WHERE c.organization_id = o.id AND c.credits_added > 0 ORDER BY c.id DESC LIMIT 1) AS a
     WHERE o.deleted_at IS NULL AND o.credit_balance * :divisor <= a.credits_added
)""")
_ENDING = told("""
WITH news AS (
    SELECT 'subscription.ending' AS event, format('ending:%s:%s', s.id, s.end_date) AS occasion,
           jsonb_build_object('organization_subscription_id', s.id, 'organization_id', s.organization_id,
               'organization', o.name, 'plan_id', s.plan_id, 'end_date', s.end_date) AS data
      FROM organization_subscription AS s JOIN organization AS o ON o.id = s.organization_id
     WHERE s.status = 'active' AND s.end_date <= cast(:until AS date)
)""")
_INVOICE = told("""
WITH news AS (
    SELECT 'invoice.finalized' AS event, 'invoice:' || i.id AS occasion,
           jsonb_build_object('invoice_id', i.id, 'organization_id', i.organization_id,
               'organization', o.name, 'kind', i.kind, 'number', i.number, 'currency', i.currency,
               'total_amount', trim_scale(i.total_amount)::text) AS data
      FROM invoice AS i JOIN organization AS o ON o.id = i.organization_id WHERE i.id = ANY(:ids)
)""")
# What an invoice's payment status became; one that is open again is no news.
_PAYMENT_STATUS = told("""
WITH news AS (
    SELECT 'invoice.' || i.payment_status AS event,
           format('invoice:%s:%s', i.id, gen_random_uuid()) AS occasion,
           jsonb_build_object('invoice_id', i.id, 'organization_id', i.organization_id,
               'organization', o.name, 'number', i.number, 'currency', i.currency,
               'total_amount', trim_scale(i.total_amount)::text, 'payment_status', i.payment_status,
               'due_date', i.due_date) AS data
      FROM invoice AS i JOIN organization AS o ON o.id = i.organization_id
     WHERE i.id = ANY(:ids) AND i.payment_status <> 'open'
)""")
_NOBODY = text("SELECT NOT EXISTS (SELECT FROM webhook WHERE enabled AND deleted_at IS NULL)")
_PRUNE = text("""
DELETE FROM webhook_delivery
 WHERE state <> 'pending' AND created_at < now() - make_interval(days =>
       CASE WHEN event LIKE 'quota.%' OR event = 'credits.low' THEN cast(:long AS integer) ELSE :days END)""")
_UNANSWERED = text("""
DELETE FROM mail_consent
 WHERE given_at IS NULL AND coalesce(expires_at, asked_at + make_interval(days => :days)) < now()""")


def tell_invoices(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Write the news of finalized invoices in the transaction that finalizes them."""
    connection.execute(_INVOICE, {"ids": list(invoice_ids)})


def tell_payment_status(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Write the news of invoices that are paid, overdue or given up, with what made them so."""
    connection.execute(_PAYMENT_STATUS, {"ids": list(invoice_ids)})


class Notices:
    """Looks for news."""

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
            await connection.execute(_PRUNE, {"days": KEPT_DAYS, "long": KEPT_LONG_DAYS})
            await connection.execute(_UNANSWERED, {"days": KEPT_DAYS})
        await budget_news.reached(self._engine, now)

    async def foresee(self, now: datetime) -> None:
        """Write down what is coming."""
        await budget_news.foresee(self._engine, now)
        await sudden_news.look(self._engine, now)
