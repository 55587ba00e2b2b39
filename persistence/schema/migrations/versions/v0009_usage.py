"""What was used, by hour and by day and by everything it is asked by."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of roll-ups."""
    sql = (Path(__file__).parents[1] / "v0009" / "usage.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
