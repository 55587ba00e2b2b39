"""Budgets that callers make, which travel with their calls."""

from alembic import op

revision = "0101"
down_revision = "0100"
alters = ("organization", "tenant")
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE run (
    id bigint PRIMARY KEY,
    organization_id bigint NOT NULL REFERENCES organization(id),
    tenant_id bigint NOT NULL REFERENCES tenant(id),
    name text NOT NULL CHECK (name <> ''),
    parent_name text CHECK (parent_name <> ''),
    unit text NOT NULL CHECK (unit IN ('money', 'tokens')),
    amount bigint CHECK (amount >= 0),
    calls_max bigint CHECK (calls_max > 0),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz
);
CREATE INDEX run_organization_id_idx ON run (organization_id, id);
CREATE INDEX run_tenant_id_idx ON run (tenant_id, name);
CREATE INDEX run_expires_at_idx ON run (expires_at);
"""


def upgrade() -> None:
    """Make the table."""
    op.execute(_STATEMENTS)
