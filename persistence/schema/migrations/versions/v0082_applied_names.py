"""What files called a row that they were applied to: whoever renames it changes nothing of what they mean."""

from alembic import op

revision = "0082"
down_revision = "0081"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column that may be null: a row of before is called what it is called now."""
    op.get_bind().exec_driver_sql("ALTER TABLE applied_row ADD COLUMN said JSONB")
