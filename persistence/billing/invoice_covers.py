"""Which uses stand behind a final invoice: the credits it told of, and how far its accounts are covered."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Connection, text

from gateway.core.accounts.administration import Row

_TELL = text("""
WITH told AS (
    SELECT tenant_id, day, service_id, credits - billed_credits AS credits FROM usage_daily
     WHERE organization_id = :organization AND day < :until AND credits > billed_credits
     ORDER BY tenant_id, day, service_id FOR UPDATE
), marked AS (
    UPDATE usage_daily AS u SET billed_credits = u.credits
      FROM told AS b WHERE u.tenant_id = b.tenant_id AND u.day = b.day AND u.service_id = b.service_id
)
INSERT INTO invoice_basis (invoice_id, kind, quantity, tenant_id, day, service_id)
SELECT :invoice, 'credits_consumed', credits, tenant_id, day, nullif(service_id, 0) FROM told""")
_FORGET = text("""
UPDATE usage_daily AS u SET billed_credits = u.billed_credits - b.quantity
  FROM invoice_basis AS b
 WHERE b.invoice_id = :invoice AND b.kind = 'credits_consumed' AND u.tenant_id = b.tenant_id
   AND u.day = b.day AND u.service_id = coalesce(b.service_id, 0)""")
_COVERS = text("""
SELECT jsonb_build_object('since', cast(:since AS text), 'credits', o.credit_last_seq,
       'spend', o.spend_last_seq, 'tenants', coalesce((
           SELECT jsonb_object_agg(t.id, coalesce(q.last_seq, 0))
             FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
            WHERE t.organization_id = o.id), '{}'::jsonb))
  FROM organization AS o WHERE o.id = :organization""")


def tell_credits(connection: Connection, invoice_id: int, organization_id: int, until: date) -> None:
    """Note the credits that were used up to a day and no invoice has told of: this one does."""
    here = {"organization": organization_id, "invoice": invoice_id, "until": until}
    connection.execute(_TELL, here)


def forget_credits(connection: Connection, invoice_id: int) -> None:
    """Let another invoice tell of the credits that one made void told of."""
    connection.execute(_FORGET, {"invoice": invoice_id})


def covers(connection: Connection, organization_id: int, since: date) -> Row:
    """Movements from a day on, up to where each account is now."""
    here = {"organization": organization_id, "since": since.isoformat()}
    found: Row = connection.execute(_COVERS, here).scalar_one()
    return found
