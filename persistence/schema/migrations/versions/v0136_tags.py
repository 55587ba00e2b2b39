"""Organizations declare tags: of API keys, budgets, calls and reports."""

from alembic import op

revision = "0136"
down_revision = "0135"
alters = ("api_key", "budget", "call", "organization", "usage_name", "usage_outbox")
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None

_TAGS = "tags jsonb DEFAULT '{}' NOT NULL CHECK (jsonb_typeof(tags) = 'object')"
_EACH = "each IN ('user', 'key', 'project', 'session', 'tenant') OR each ~ '^tag:[A-Za-z0-9_.-]{1,64}$'"


def upgrade() -> None:
    """Add the columns and the roll-ups by tag; older programs declare none, so they leave all empty."""
    op.execute(
        "ALTER TABLE organization"
        " ADD tags jsonb DEFAULT '[]' NOT NULL CHECK (jsonb_typeof(tags) = 'array'),"
        " ADD tags_since jsonb DEFAULT '{}' NOT NULL CHECK (jsonb_typeof(tags_since) = 'object');"
        f"ALTER TABLE api_key ADD {_TAGS};"
        f"ALTER TABLE budget ADD {_TAGS}, DROP CONSTRAINT budget_each_check,"
        f" ADD CONSTRAINT budget_each_check CHECK ({_EACH});"
        "ALTER TABLE call ADD tags jsonb;"
        "ALTER TABLE usage_outbox ADD tags jsonb DEFAULT '{}' NOT NULL;"
        "ALTER TABLE usage_name DROP CONSTRAINT usage_name_kind_check,"
        " ADD CONSTRAINT usage_name_kind_check CHECK (kind IN ('model', 'project') OR kind LIKE 'tag:%') NOT VALID;"
        + USAGE_TAG
        + INVARIANT
    )


USAGE_TAG = """
CREATE TABLE usage_tag (
    span text NOT NULL CHECK (span IN ('hour', 'day')),
    start timestamptz NOT NULL,
    organization_id bigint NOT NULL,
    tenant_id bigint NOT NULL,
    api_key_id bigint NOT NULL,
    user_id bigint NOT NULL,
    project_id bigint NOT NULL,
    service_id bigint NOT NULL,
    model text NOT NULL,
    currency text NOT NULL,
    tags_hash bytea NOT NULL,
    tags jsonb NOT NULL,
    requests bigint NOT NULL,
    refused bigint NOT NULL,
    input bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write bigint NOT NULL,
    output bigint NOT NULL,
    reasoning bigint NOT NULL,
    tokens bigint NOT NULL,
    credits bigint NOT NULL,
    units bigint NOT NULL,
    cost bigint NOT NULL,
    estimated bigint NOT NULL,
    unpriced bigint NOT NULL,
    cache_write_1h bigint NOT NULL,
    PRIMARY KEY (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model,
        currency, tags_hash)
);
CREATE INDEX usage_tag_start_idx ON usage_tag (start);
"""

# Roll-ups of calls say nothing of budgets of tags: a call that was reclaimed has none.
INVARIANT = """
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
       AND u.used NOT BETWEEN c.used AND c.with_events
       AND (b.unit = 'money' OR u.largest < 9007199254740991)"""
