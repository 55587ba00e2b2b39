"""Budgets of money count any amount."""

from alembic import op

revision = "0125"
down_revision = "0124"
alters = ("budget", "budget_told", "budget_use")
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None

_AMOUNT = """
ALTER TABLE budget DROP CONSTRAINT budget_{0}_check, ADD CONSTRAINT budget_{0}_check CHECK (
    {0} BETWEEN 0 AND CASE unit WHEN 'money' THEN 1000000000000000 ELSE 9007199254740991 END
    AND {0} = trunc({0}, CASE unit WHEN 'money' THEN 9 ELSE 0 END))"""
_INVARIANT = """
CREATE VIEW invariant_budgets AS
    SELECT 'budget:' || b.id AS account, NULL::bigint AS seq,
           format('since %s: %s used, calls come to %s', s.start, u.used, c.used) AS detail
      FROM budget AS b JOIN organization AS o ON o.id = b.organization_id
     CROSS JOIN LATERAL (SELECT min(start) AS start FROM budget_use
              WHERE budget_id = b.id AND start > greatest(
                    b.updated_at + interval '1 minute',
                    (SELECT since FROM kept_since WHERE ledger = 'call'))) AS s
     CROSS JOIN LATERAL (SELECT sum(used + reset) AS used,
                                max(greatest(abs(used), abs(reset))) AS largest
               FROM budget_use WHERE budget_id = b.id AND start >= s.start) AS u
     CROSS JOIN LATERAL (
               SELECT coalesce(sum(amount) FILTER (WHERE route IS DISTINCT FROM 'events'), 0) AS used,
                      coalesce(sum(amount), 0) AS with_events
                 FROM (SELECT organization_id, tenant_id, api_key_id, project_id, service_id, created_at,
                              route, refused,
                              CASE WHEN b.unit = 'tokens' THEN tokens + amended
                                   WHEN currency = o.currency THEN cost - rerated END AS amount
                         FROM call) AS call
                WHERE organization_id = o.id AND created_at >= s.start AND NOT refused
                  AND (b.tenant_id IS NULL OR tenant_id = b.tenant_id)
                  AND (b.api_key_id IS NULL OR api_key_id = b.api_key_id)
                  AND (b.project_id IS NULL OR project_id = b.project_id)
                  AND (b.service_id IS NULL OR service_id = b.service_id)) AS c
     WHERE b.unit IN ('money', 'tokens') AND b.mode = 'enforce' AND b."user" IS NULL AND b.model IS NULL
       AND b.tool IS NULL AND b.server IS NULL AND b.deleted_at IS NULL
       AND u.used NOT BETWEEN c.used AND c.with_events
       AND (b.unit = 'money' OR u.largest < 9007199254740991)"""


def upgrade() -> None:
    """Change the columns of amounts and of use to types of any size."""
    for amount in ("amount", "raised_to"):
        op.execute(_AMOUNT.format(amount))
    op.execute("DROP VIEW invariant_budgets")
    op.execute("ALTER TABLE budget_use ALTER used TYPE numeric, ALTER reset TYPE numeric")
    op.execute("ALTER TABLE budget_told ALTER before_used TYPE numeric, ALTER seen_used TYPE numeric")
    op.execute(_INVARIANT)
