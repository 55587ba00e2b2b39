"""A price for credits that are used beyond the balance, and what of them was billed."""

from pathlib import Path

from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say since when they cost what, and add up what no addition paid; what was used before is free."""
    sql = (Path(__file__).parents[1] / "v0037" / "postpaid.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
