"""Use of budgets that ended long ago is found by when its window began."""

from alembic import op

revision = "0119"
down_revision = "0118"
alters = ("budget_use",)
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index that the hourly sweep reads; a beginning never changes, so use does not touch it."""
    op.execute("CREATE INDEX budget_use_start_idx ON budget_use (start) WHERE start > 'epoch'")
