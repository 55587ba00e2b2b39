"""What calls were charged is amended by rows with a reason."""

from pathlib import Path

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add amendments, and count what they take back of cycles that are over."""
    sql = (Path(__file__).parents[1] / "v0027" / "amendments.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
