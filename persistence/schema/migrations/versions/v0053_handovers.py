"""What is final is handed over to whoever collects it, once, and what is told of it comes back."""

from pathlib import Path

from alembic import op

revision = "0053"
down_revision = "0052"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the hand-overs and what is told of them, and say who organizations are at Stripe."""
    sql = (Path(__file__).parents[1] / "v0053" / "handovers.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
