"""Payments: what of an invoice is paid, when it is due, and what nobody hopes for any more."""

from pathlib import Path

from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, let a final invoice change its payment status alone, and prove what it says."""
    sql = (Path(__file__).parents[1] / "v0032" / "payments.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
