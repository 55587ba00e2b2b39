"""Days of use that credit notes touched have no discount to compare."""

from alembic import op

revision = "0139"
down_revision = "0138"
alters = ()
runs_from = "0100"
version = "1.1.0"

_VIEW = """
CREATE OR REPLACE VIEW invariant_service_discounts AS
    SELECT 'tenant:' || u.tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s: %s is off use of %s, by a discount of %s', u.period_start, u.service_id, -u.discounted, u.used,
                  coalesce(d.rate, 0)) AS detail
      FROM (SELECT organization_id, tenant_id, service_id, period_start,
                   coalesce(sum(amount) FILTER (WHERE kind = 'usage'), 0) AS used,
                   coalesce(sum(amount) FILTER (WHERE kind = 'discount'), 0) AS discounted
              FROM charge WHERE kind IN ('usage', 'discount') AND service_id IS NOT NULL
             GROUP BY 1, 2, 3, 4 HAVING NOT bool_or(reason = 'credited')) AS u
      LEFT JOIN LATERAL (SELECT rate, is_due FROM service_discount AS s
                          WHERE s.organization_id = u.organization_id AND s.service_id = u.service_id
                            AND s.month <= (u.period_start AT TIME ZONE 'UTC')::date ORDER BY s.month DESC LIMIT 1) AS d ON true
     WHERE u.discounted <> -u.used * coalesce(d.rate, 0) AND d.is_due IS NOT true;
"""


def upgrade() -> None:
    """Make the check, or replace it by one without days of credit notes."""
    op.execute(_VIEW)
