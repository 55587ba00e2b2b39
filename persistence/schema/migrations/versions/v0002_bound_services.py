"""Services say which upstream and which paths their calls go to."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what says where calls of a service go; nothing said is as before."""
    op.execute("ALTER TABLE service ADD COLUMN upstream TEXT, ADD COLUMN paths JSONB")
