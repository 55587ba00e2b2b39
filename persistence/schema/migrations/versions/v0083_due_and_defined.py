"""Resets that are due, and what was defined since, are found by an index."""

from alembic import op

revision = "0083"
down_revision = "0082"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE INDEX tenant_quota_next_reset_at_idx ON tenant_quota (next_reset_at) WHERE next_reset_at IS NOT NULL;
CREATE INDEX control_write_defined_idx ON control_write (position) WHERE verb = 'define';"""


def upgrade() -> None:
    """Indexes alone: what runs already goes on without them."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
