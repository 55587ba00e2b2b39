"""Roll-ups by half a week, each in a currency, so that a report reads few rows and joins nothing."""

from pathlib import Path

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the span, and name the currency of what had no price."""
    sql = (Path(__file__).parents[1] / "v0020" / "half_weeks.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
