"""Admin tokens of one organization that staff gave to staff: they may decide what it owes."""

from alembic import op

revision = "0088"
down_revision = "0087"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Mark none: what runs already goes on without it."""
    op.get_bind().exec_driver_sql("ALTER TABLE admin_token ADD COLUMN ours BOOLEAN DEFAULT false NOT NULL;")
