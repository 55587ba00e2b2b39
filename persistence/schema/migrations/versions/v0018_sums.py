"""Sums of many calls have no bound of one call's number, and a flush cannot fail by them."""

from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the bounds, and compare no sum that is the largest its column holds."""
    sql = (Path(__file__).parents[1] / "v0018" / "sums.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
