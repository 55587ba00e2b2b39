"""Refunded use is subtracted from a tenant's use in its cycle."""

from alembic import op

revision = "0120"
down_revision = "0119"
alters = ()
runs_from = "0100"
version = "1.1.0"

QUOTA = """
CREATE OR REPLACE VIEW invariant_quota AS
    WITH last AS (
        SELECT DISTINCT ON (tenant_id) tenant_id, seq, total_remaining, epoch, cycle
          FROM token_ledger ORDER BY tenant_id, seq DESC
    ), used AS (
        -- A correction may be of a call in a cycle before, or of a version that took none for use.
        SELECT tenant_id, cycle, sum(least) AS least, sum(most) AS most
          FROM (SELECT tenant_id, cycle, amount AS least, amount AS most
                  FROM token_ledger WHERE transaction_type = 'consume'
                UNION ALL
                SELECT tenant_id, cycle, CASE direction WHEN 'IN' THEN -amount ELSE 0 END,
                       CASE direction WHEN 'IN' THEN 0 ELSE amount END
                  FROM token_ledger WHERE transaction_type = 'adjust' AND metadata ? 'corrects'
                UNION ALL
                -- those of tenants are all uses
                SELECT split_part(account, ':', 2)::bigint, cycle, -amount, -amount FROM archived_run
                 WHERE account LIKE 'tenant:%') AS uses
         GROUP BY tenant_id, cycle
    )
    SELECT 'tenant:' || q.tenant_id AS account, q.last_seq AS seq,
           format('used %s of %s, remaining %s of %s, seq %s of %s', q.tokens_used, coalesce(u.most, 0),
                  q.tokens_remaining, l.total_remaining, q.last_seq, l.seq) AS detail
      FROM tenant_quota AS q
      LEFT JOIN last AS l USING (tenant_id)
      LEFT JOIN used AS u ON u.tenant_id = q.tenant_id AND u.cycle = q.cycle
     WHERE NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = 'tenant:' || q.tenant_id)
       AND (q.last_seq <> coalesce(l.seq, 0)
            OR (l.seq IS NOT NULL AND ((q.tokens_used NOT BETWEEN coalesce(u.least, 0) AND coalesce(u.most, 0)
                    AND NOT EXISTS (SELECT FROM known_drift AS d WHERE d.account = 'tenant:' || q.tenant_id))
                OR q.tokens_remaining IS DISTINCT FROM l.total_remaining
                OR q.epoch < l.epoch OR q.cycle <> l.cycle)))
"""


def upgrade() -> None:
    """Replace the invariant of quotas: refunds may be subtracted from use or not, as in older rows."""
    op.execute(QUOTA)
