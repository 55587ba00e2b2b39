"""The use of a budget's interval has what it carries over; rolling windows count by when calls were admitted."""

from alembic import op

revision = "0142"
down_revision = "0141"
alters = ("budget_use",)
runs_from = "0100"
version = "1.1.0"

# Calls are compared by when they were stored, which is no beginning of a part.
_VIEW = """
CREATE OR REPLACE VIEW invariant_budgets AS
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
       AND b.tool IS NULL AND b.server IS NULL AND b.tags = '{}' AND b.deleted_at IS NULL
       AND b."window" <> 'rolling'
       AND u.used NOT BETWEEN c.used AND c.with_events
       AND (b.unit = 'money' OR u.largest < 9007199254740991);
"""


def upgrade() -> None:
    """Add columns, which older programs leave null, and leave rolling windows out of the check."""
    op.execute(
        "ALTER TABLE budget_use ADD carried numeric, ADD limit_at_end numeric, ADD changed double precision"
    )
    op.execute(_VIEW)
