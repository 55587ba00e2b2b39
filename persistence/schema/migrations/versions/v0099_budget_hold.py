"""A budget may say how much of a call it holds."""

from alembic import op

revision = "0099"
down_revision = "0098"
alters = ("budget",)
runs_from = "0098"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; null is what the tenant's plan says."""
    op.execute("ALTER TABLE budget ADD COLUMN hold text CHECK (hold IN ('likely', 'maximum'))")
