"""Token plans count the days of a time zone, from a day of their own."""

from pathlib import Path

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the fields of plans, and what is told of zones."""
    sql = (Path(__file__).parents[1] / "v0022" / "time_zones.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
