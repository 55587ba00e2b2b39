"""Credits with an invoice of their own, and those that wait until it is paid."""

from pathlib import Path

from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of an addition on which invoice it is; what is prepaid is owed before its posting."""
    sql = (Path(__file__).parents[1] / "v0034" / "top_ups.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
