"""Invariants read all rows: proofs of accounts, and the views behind them, are gone."""

from alembic import op

revision = "0098"
down_revision = "0097"
# A keeper of before proves accounts by these views.
runs_from = "0098"
alters = ("account_proof",)
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE OR REPLACE VIEW invariant_checkpoints AS
    WITH moved AS (
        SELECT c.account, c.last_seq, c.month, m.seq, m.at, m.delta, m.movements,
               max(m.seq) FILTER (WHERE m.balance IS NULL)
                   OVER (PARTITION BY c.account, c.last_seq) AS unlimited_seq
          FROM checkpoint_in_force AS c
          JOIN account_movement AS m ON m.account = c.account AND m.seq > c.first_seq AND m.seq <= c.last_seq
    ), counted AS (
        SELECT account, last_seq, sum(movements)::bigint AS movements,
               sum(delta) FILTER (WHERE CASE
                   WHEN account LIKE 'spend:%' THEN at >= month::timestamp AT TIME ZONE 'UTC'
                   ELSE unlimited_seq IS NULL OR seq > unlimited_seq END) AS amount
          FROM moved GROUP BY account, last_seq
    )
    SELECT account, last_seq AS seq, format('since %s: %s movements of %s, kept are %s of %s', c.first_seq,
           coalesce(n.movements, 0), coalesce(n.amount, 0), c.movements, c.amount) AS detail
      FROM checkpoint_in_force AS c LEFT JOIN counted AS n USING (account, last_seq)
     WHERE (c.movements, c.amount) <> (coalesce(n.movements, 0), coalesce(n.amount, 0))
    UNION ALL
    SELECT account, last_seq, format('begins behind %s, the one before ends at %s', first_seq, before)
      FROM (SELECT account, last_seq, first_seq,
                   coalesce(lag(last_seq) OVER (PARTITION BY account ORDER BY last_seq), 0) AS before
              FROM checkpoint_in_force) AS c
     WHERE first_seq <> before;
CREATE OR REPLACE VIEW invariant_budgets AS
    SELECT 'budget:' || b.id AS account, NULL::bigint AS seq,
           format('since %s: %s used, calls come to %s', s.start, u.used, c.used) AS detail
      FROM budget AS b JOIN organization AS o ON o.id = b.organization_id
     CROSS JOIN LATERAL (SELECT min(start) AS start FROM budget_use
              WHERE budget_id = b.id AND start > greatest(
                    b.updated_at + interval '1 minute',
                    (SELECT since FROM kept_since WHERE ledger = 'call'))) AS s
     CROSS JOIN LATERAL (SELECT sum(used::numeric + reset) AS used,
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
       AND b.deleted_at IS NULL AND u.used NOT BETWEEN c.used AND c.with_events
       AND u.largest < 9007199254740991;
DROP VIEW behind_chain, behind_gapless, behind_checkpoints, behind_quota, behind_credits, behind_carried,
    behind_request_once, behind_rollup, behind_allocations, behind_usage_adds_up, movement_behind,
    organization_behind, account_behind, account_proved, proof_in_force, journal_behind;
DROP TABLE account_proof;"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(_STATEMENTS, execution_options={"no_parameters": True})
