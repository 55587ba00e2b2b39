"""Invoices on schedule: whose months an organization has, and why its invoice was left."""

from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both to organizations."""
    op.get_bind().exec_driver_sql(
        "ALTER TABLE organization ADD COLUMN time_zone TEXT DEFAULT 'UTC' NOT NULL,"
        " ADD COLUMN invoicing_left TEXT"
    )
