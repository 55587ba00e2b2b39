"""What an invoice is made from, read from subscriptions, ledgers and daily roll-ups.

Only turns of the token ledger and days of the roll-up are read, never a month's requests one by
one. What finalized invoices billed before comes with each fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date
from decimal import Decimal
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.invoice import Facts, Fee, Overage, Purchase, Use
from gateway.core.billing.pricing import Portion
from gateway.core.billing.subscription import covered, midnight
from persistence.billing.subscriptions import segment_of

_ORGANIZATION = text("SELECT currency, tax_rate, name FROM organization WHERE id = :organization")
# Everything since the first day ever invoiced belongs to some invoice: what earlier ones missed to this one.
_SINCE = text("""
SELECT least(:start, min(period_start)) FROM invoice
 WHERE organization_id = :organization AND kind = 'invoice' AND status = 'finalized'""")
_SEGMENTS = text("""
SELECT s.*, p.name FROM subscription_segment AS s JOIN subscription_plan AS p ON p.id = s.plan_id
 WHERE s.organization_id = :organization ORDER BY s.start_date, s.id""")
_BILLED_DAYS = text("""
SELECT b.segment_id, b.start_date, b.end_date, sign(b.quantity)::int AS sign
  FROM invoice_basis AS b JOIN invoice AS i ON i.id = b.invoice_id AND i.status = 'finalized'
 WHERE i.organization_id = :organization AND b.kind = 'subscription'""")
# The last row of every cycle that ended or ran between `since` and `until`: the row before a reset,
# and the last row of all. A cycle's plan is the one last given before that row.
_OVERAGES = text("""
WITH last AS (
    SELECT t.id AS tenant_id, t.name, r.seq - 1 AS seq
      FROM tenant AS t JOIN token_ledger AS r ON r.tenant_id = t.id AND r.transaction_type = 'reset'
       AND r.created_at >= :since AND r.created_at < :until AND r.seq > 1
     WHERE t.organization_id = :organization
    UNION
    SELECT t.id, t.name, (SELECT l.seq FROM token_ledger AS l
                           WHERE l.tenant_id = t.id AND l.created_at < :until ORDER BY l.seq DESC LIMIT 1)
      FROM tenant AS t WHERE t.organization_id = :organization
), ended AS (
    SELECT last.tenant_id, last.name, l.seq, l.cycle, -l.total_remaining AS tokens, l.created_at AS at
      FROM last JOIN token_ledger AS l ON l.tenant_id = last.tenant_id AND l.seq = last.seq
     WHERE l.created_at >= :since AND l.total_remaining < 0
)
SELECT e.tenant_id, e.name, e.cycle, e.tokens, p.unit_price, began.at AS began,
       coalesce((SELECT sum(b.quantity) FROM invoice_basis AS b JOIN invoice AS i ON i.id = b.invoice_id
                  WHERE i.status = 'finalized' AND b.kind = 'overage' AND b.tenant_id = e.tenant_id
                    AND b.cycle = e.cycle), 0) AS billed
  FROM ended AS e
  LEFT JOIN LATERAL (SELECT b.created_at AS at FROM token_ledger AS b
          WHERE b.tenant_id = e.tenant_id AND b.seq <= e.seq AND b.transaction_type = 'reset'
            AND b.cycle = e.cycle ORDER BY b.seq DESC LIMIT 1) AS began ON true
 CROSS JOIN LATERAL (SELECT (w.payload->>'plan_id')::bigint AS plan_id, g.created_at AS at
           FROM token_ledger AS g JOIN control_write AS w ON w.id = g.control_write_id AND w.verb = 'plan'
          WHERE g.tenant_id = e.tenant_id AND g.seq <= e.seq AND g.transaction_type <> 'consume'
          ORDER BY g.seq DESC LIMIT 1) AS given
  -- The first price for them from when the cycle, or the plan in it, began: a later one is the next cycle's.
 CROSS JOIN LATERAL (SELECT v.unit_price
           FROM (SELECT *, lead(since) OVER w AS till, lag(since) OVER w IS NULL AS is_first
                   FROM token_plan_price WHERE plan_id = given.plan_id WINDOW w AS (ORDER BY since)) AS v
          WHERE v.overage_policy = 'bill' AND v.unit_price IS NOT NULL AND (v.since <= e.at OR v.is_first)
            AND coalesce(v.till, 'infinity') > greatest(began.at, given.at)
          ORDER BY v.since LIMIT 1) AS p
 ORDER BY e.tenant_id, e.cycle""")
_PURCHASES = text("""
SELECT a.id, a.credits_added, a.unit_cost, a.remark, (a."timestamp" AT TIME ZONE 'UTC')::date AS day
  FROM credit_addition AS a
 WHERE a.organization_id = :organization AND a.category = 'paid' AND a.unit_cost IS NOT NULL
   AND a."timestamp" >= :since AND a."timestamp" < :until
   AND EXISTS (SELECT FROM credit_posting AS p WHERE p.organization_id = a.organization_id
                  AND p.credit_addition_id = a.id AND p.kind = 'addition')
   AND NOT EXISTS (SELECT FROM invoice_basis AS b JOIN invoice AS i ON i.id = b.invoice_id
                    WHERE i.status = 'finalized' AND b.credit_addition_id = a.id)
 ORDER BY a."timestamp", a.id""")
_CONSUMED = text("""
SELECT coalesce(sum(credits - billed_credits), 0)::bigint FROM usage_daily
 WHERE organization_id = :organization AND day >= :since_day AND day < :until_day""")
# All units of a month count for their place in it, also those billed before `since`.
_USES = text("""
SELECT t.service_id, coalesce(s.name, 'service ' || t.service_id) AS name,
       date_trunc('month', t.day)::date AS month, t.unit_price,
       t.unit_price = 0.000000001 AS in_money, sum(t.billed_quantity)::bigint AS billed,
       coalesce(sum(t.quantity - t.billed_quantity)
                FILTER (WHERE t.day >= :since_day AND t.day < :until_day), 0)::bigint AS units
  FROM usage_tier AS t LEFT JOIN service AS s ON s.id = t.service_id
 WHERE t.organization_id = :organization AND t.day >= date_trunc('month', cast(:since_day AS date))
   AND t.day < date_trunc('month', cast(:until_day AS date)) + interval '1 month'
 GROUP BY t.service_id, s.name, date_trunc('month', t.day), t.unit_price
 ORDER BY month, t.service_id, min(t.first_unit), t.unit_price""")


def read_facts(connection: Connection, organization_id: int, start: date, end: date) -> tuple[Facts, str]:
    """The facts of the days from `start` to `end` (not included), and the organization's name."""
    here: dict[str, Any] = {"organization": organization_id, "start": start}
    organization = connection.execute(_ORGANIZATION, here).one()
    since = connection.execute(_SINCE, here).scalar_one()
    here |= {
        "since": midnight(since),
        "until": midnight(end),
        "since_day": since,
        "until_day": end,
    }
    facts = Facts(
        currency=organization.currency,
        tax_rate=organization.tax_rate,
        since=since,
        until=end,
        fees=_fees(connection, here),
        overages=_overages(connection, here),
        purchases=[
            Purchase(row.id, row.day, row.credits_added, row.unit_cost, row.remark or "")
            for row in connection.execute(_PURCHASES, here)
        ],
        credits_consumed=connection.execute(_CONSUMED, here).scalar_one(),
        uses=_uses(connection, here),
    )  # fmt: skip
    return facts, organization.name


def _fees(connection: Connection, here: Mapping[str, Any]) -> list[Fee]:
    billed: dict[int, list[tuple[date, date, int]]] = {}
    for row in connection.execute(_BILLED_DAYS, here):
        billed.setdefault(row.segment_id, []).append((row.start_date, row.end_date, row.sign))
    return [
        Fee(segment_of(row), row.name, covered(billed.get(row.id, ())))
        for row in connection.execute(_SEGMENTS, here)
    ]


def _overages(connection: Connection, here: Mapping[str, Any]) -> list[Overage]:
    return [
        Overage(
            tenant_id=row.tenant_id,
            tenant=row.name,
            cycle=row.cycle,
            began=row.began.astimezone(UTC).date() if row.began else None,
            tokens=row.tokens,
            billed=int(row.billed),
            unit_price=Decimal(row.unit_price),
        )
        for row in connection.execute(_OVERAGES, here)
    ]


def _uses(connection: Connection, here: Mapping[str, Any]) -> list[Use]:
    found = connection.execute(_USES, here).all()
    rows = sorted(found, key=lambda row: (row.month, row.service_id, row.in_money))  # else as they are
    return [
        Use(
            service_id, of_month[0].name, month, sum(row.billed for row in of_month),
            tuple(Portion(at, row.units, row.unit_price) for at, row in enumerate(of_month) if row.units),
        )
        for (month, service_id), of_month in (
            (key[:2], list(group))
            for key, group in groupby(rows, key=lambda row: (row.month, row.service_id, row.in_money))
        )
    ]  # fmt: skip
