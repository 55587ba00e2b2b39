"""What a tenant that was deleted has used of its plan."""

from alembic import op

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let the end of a plan say that its tenant was gone before."""
    op.get_bind().exec_driver_sql("ALTER TABLE plan_end ADD COLUMN is_gone BOOLEAN DEFAULT false NOT NULL")
