"""What is done about invoices that are not paid: reminders, and a block at their end."""

from pathlib import Path

from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the steps, which are only added, and say whom they concern."""
    sql = (Path(__file__).parents[1] / "v0045" / "dunning.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
