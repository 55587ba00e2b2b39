"""Organizations declare tags: of API keys, budgets, calls and reports."""

from alembic import op

revision = "0136"
down_revision = "0135"
alters = ("api_key", "budget", "call", "organization", "usage_name", "usage_outbox")
runs_from = "0100"
version = "1.1.0"

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
