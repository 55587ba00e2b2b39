"""Keepers say which schema they know, for a migration that would not serve them."""

from alembic import op

revision = "0079"
down_revision = "0078"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column that may be null: who knows nothing of it goes on without."""
    op.get_bind().exec_driver_sql("ALTER TABLE keeper ADD COLUMN schema_version TEXT")
