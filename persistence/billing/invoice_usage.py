"""Behind an invoice: every use it billed, one row each, with the request it came from.

An invoice covers the movements from its first day on up to a seq of each account, noted when it
was finalized, less what an invoice finalized before covers already. A draft covers what it would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.billing.subscription import midnight
from gateway.core.model import INTEGER_MAX
from gateway.errors import NotFound

ROWS_A_BATCH = 2_000

_INVOICE = text("""
SELECT i.id, i.organization_id, i.period_start, i.period_end, i.covers, i.finalized_at, i.corrects_id,
       i.source,
       coalesce((SELECT min(u.day) FROM usage_daily AS u WHERE u.organization_id = i.organization_id),
                i.period_start) AS first_day
  FROM invoice AS i WHERE i.id = :id""")
_BEFORE = text("""
SELECT o.period_end, o.covers FROM invoice AS o
 WHERE o.organization_id = :organization AND o.corrects_id IS NULL AND o.status = 'finalized' AND o.id <> :id
   AND o.covers IS NOT NULL AND o.finalized_at < coalesce(cast(:finalized_at AS timestamptz), 'infinity')""")
_TENANTS = text("SELECT id FROM tenant WHERE organization_id = :organization ORDER BY id")

_TOKENS = """
SELECT 'tokens' AS kind, l.created_at AS at, l.tenant_id, t.name AS tenant, s.key AS service,
       l.amount AS quantity, l.seq, l.request_id, u.external_id AS user, NULL::bigint AS content_id,
       NULL::bigint AS project_id, NULL AS feature_version, l.metadata->>'model' AS model
  FROM token_ledger AS l LEFT JOIN service AS s ON s.id = l.service_id
  LEFT JOIN app_user AS u ON u.id = l.user_id LEFT JOIN tenant AS t ON t.id = l.tenant_id
 WHERE l.tenant_id = :owner AND l.transaction_type = 'consume' AND l.created_at >= :since
   AND l.created_at < :until AND l.seq > :after AND l.seq <= :upto ORDER BY l.seq"""
_USES = """
SELECT {kind} AS kind, l."timestamp" AS at, l.tenant_id, t.name AS tenant, s.key AS service,
       {amount} AS quantity, l.seq, l.request_id, u.external_id AS user, l.content_id, l.project_id,
       l.feature_version, l.metadata->>'model' AS model
  FROM {ledger} AS l LEFT JOIN service AS s ON s.id = l.feature_id
  LEFT JOIN app_user AS u ON u.id = l.user_id LEFT JOIN tenant AS t ON t.id = l.tenant_id
 WHERE l.organization_id = :owner AND l."timestamp" >= :since
   AND l."timestamp" < :until AND l.seq > :after AND l.seq <= :upto ORDER BY l.seq"""
# Of use at cost the quantity is money.
_UNITS = {
    "kind": "CASE WHEN l.in_money THEN 'money' ELSE 'units' END",
    "amount": "CASE WHEN l.in_money THEN l.usage_amount * 0.000000001 ELSE l.usage_amount END",
}
_QUERIES = {
    "tokens": text(_TOKENS),
    "credits": text(_USES.format(kind="'credits'", amount="l.credits_used", ledger="credit_transaction")),
    "units": text(_USES.format(**_UNITS, ledger="feature_usage")),
}

# First day, day after the last, and the seq up to which an account is covered within them.
Covered = tuple[datetime, datetime, int]


class InvoiceUsage:
    """Reads the uses that invoices bill, in batches."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def rows(self, invoice_id: int) -> AsyncIterator[Sequence[Row]]:
        """Every use that an invoice bills, by account and seq; `NotFound` if there is no such invoice."""
        async with self._engine.connect() as connection:
            invoice = (await connection.execute(_INVOICE, {"id": invoice_id})).first()
            if invoice is None:
                raise NotFound
            if invoice.corrects_id is not None or invoice.source is not None:
                return
            here = {
                "organization": invoice.organization_id,
                "id": invoice.id,
                "finalized_at": invoice.finalized_at,
            }
            before = (await connection.execute(_BEFORE, here)).all()
            tenants = (await connection.execute(_TENANTS, here)).scalars().all()
            accounts = [("tokens", tenant) for tenant in tenants]
            accounts += [("credits", invoice.organization_id), ("units", invoice.organization_id)]
            for kind, owner in accounts:
                others = [_covered(one.covers, one.period_end, kind, owner) for one in before]
                mine = _mine(invoice, kind, owner)
                start = midnight(invoice.period_start)
                # What is late is few and lies behind what others cover; the rest is the period itself.
                for since, until in ((mine[0], start), (start, mine[1])):
                    after = _after(since, until, others)
                    values = {"owner": owner, "since": since, "until": until, "after": after, "upto": mine[2]}
                    async with connection.stream(_QUERIES[kind], values) as result:
                        async for batch in result.mappings().partitions(ROWS_A_BATCH):
                            fresh = [dict(row) for row in batch if not _covers(others, row["at"], row["seq"])]
                            if fresh:
                                yield fresh


def _mine(invoice: Any, kind: str, owner: int) -> Covered:
    if invoice.covers is None:
        since = min(invoice.first_day, invoice.period_start)
        return midnight(since), midnight(invoice.period_end), INTEGER_MAX
    return _covered(invoice.covers, invoice.period_end, kind, owner)


def _covered(covers: Mapping[str, Any], until: date, kind: str, owner: int) -> Covered:
    seqs = {
        "tokens": covers["tenants"].get(str(owner), 0),
        "credits": covers["credits"],
        "units": covers["spend"],
    }
    return midnight(date.fromisoformat(covers["since"])), midnight(until), int(seqs[kind])


def _after(start: datetime, end: datetime, others: Sequence[Covered]) -> int:
    """A seq up to which everything of these days is covered by one other invoice: no need to read it."""
    return max((upto for since, until, upto in others if since <= start and until >= end), default=0)


def _covers(others: Sequence[Covered], at: datetime, seq: int) -> bool:
    return any(since <= at < until and seq <= upto for since, until, upto in others)
