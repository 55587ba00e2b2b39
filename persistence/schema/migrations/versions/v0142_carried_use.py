"""The use of a budget's interval has what it carries over."""

from alembic import op

revision = "0142"
down_revision = "0139"
alters = ("budget_use",)
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; older programs leave it null."""
    op.execute("ALTER TABLE budget_use ADD carried numeric")
