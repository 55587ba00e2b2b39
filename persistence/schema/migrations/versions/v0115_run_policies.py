"""Policies of runs of organizations, tenants and API keys."""

from alembic import op

revision = "0115"
down_revision = "0114"
alters = ("api_key", "organization", "tenant")
runs_from = "0100"
version = "1.1.0"

_STATEMENTS = """
ALTER TABLE organization ADD COLUMN runs jsonb;
ALTER TABLE tenant ADD COLUMN runs jsonb;
ALTER TABLE api_key ADD COLUMN runs jsonb;
"""


def upgrade() -> None:
    """Add the columns for policies of runs; without a policy, runs have no restrictions."""
    op.execute(_STATEMENTS)
