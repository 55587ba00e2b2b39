"""Uses that say what their units cost."""

from pathlib import Path

from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say it of each use from now on."""
    sql = (Path(__file__).parents[1] / "v0036" / "unit_prices.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
