"""Which uses stand behind a final invoice: the credits it told of, and how far its accounts are covered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date

from sqlalchemy import Connection, text

from gateway.core.accounts.administration import Row

_TELL = text("""
WITH told AS (
    SELECT n.invoice_id, u.tenant_id, u.day, u.service_id, u.credits - u.billed_credits AS credits
      FROM unnest(cast(:invoices AS bigint[]), cast(:organizations AS bigint[]), cast(:ends AS date[]))
        AS n (invoice_id, organization_id, until)
      JOIN usage_daily AS u ON u.organization_id = n.organization_id AND u.day < n.until
       AND u.credits > u.billed_credits
     ORDER BY u.tenant_id, u.day, u.service_id FOR UPDATE OF u
), marked AS (
    UPDATE usage_daily AS u SET billed_credits = u.credits
      FROM told AS b WHERE u.tenant_id = b.tenant_id AND u.day = b.day AND u.service_id = b.service_id
)
INSERT INTO invoice_basis (invoice_id, kind, quantity, tenant_id, day, service_id)
SELECT invoice_id, 'credits_consumed', credits, tenant_id, day, nullif(service_id, 0) FROM told""")
_FORGET = text("""
UPDATE usage_daily AS u SET billed_credits = u.billed_credits - b.quantity
  FROM invoice_basis AS b
 WHERE b.invoice_id = :invoice AND b.kind = 'credits_consumed' AND u.tenant_id = b.tenant_id
   AND u.day = b.day AND u.service_id = coalesce(b.service_id, 0)""")
_COVERS = text("""
SELECT o.id, jsonb_build_object('since', cast(n.since AS text), 'credits', o.credit_last_seq,
       'spend', o.spend_last_seq, 'tenants', coalesce((
           SELECT jsonb_object_agg(t.id, coalesce(q.last_seq, 0))
             FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
            WHERE t.organization_id = o.id), '{}'::jsonb)) AS covers
  FROM unnest(cast(:organizations AS bigint[]), cast(:since AS date[])) AS n (organization_id, since)
  JOIN organization AS o ON o.id = n.organization_id""")


def tell_credits(connection: Connection, told: Iterable[tuple[int, int, date]]) -> None:
    """Note the credits that were used up to a day and no invoice has told of: these do.

    An invoice, its organization and that day each.
    """
    invoices, organizations, ends = (list(column) for column in zip(*told, strict=True))
    connection.execute(_TELL, {"invoices": invoices, "organizations": organizations, "ends": ends})


def forget_credits(connection: Connection, invoice_id: int) -> None:
    """Let another invoice tell of the credits that one made void told of."""
    connection.execute(_FORGET, {"invoice": invoice_id})


def covers(connection: Connection, since: Mapping[int, date]) -> dict[int, Row]:
    """Movements of organizations from a day on, up to where each account is now."""
    here = {"organizations": list(since), "since": list(since.values())}
    return {row.id: row.covers for row in connection.execute(_COVERS, here)}
