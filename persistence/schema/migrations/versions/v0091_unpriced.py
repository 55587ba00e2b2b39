"""Tools that a call used and that had no price."""

from alembic import op

revision = "0091"
down_revision = "0090"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Name none: what runs already goes on without it."""
    op.get_bind().exec_driver_sql("ALTER TABLE call ADD COLUMN unpriced TEXT;")
