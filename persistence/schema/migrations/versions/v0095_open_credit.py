"""Credit of notes is applied to what is due, or paid back: rows of their own, and what they leave."""

from pathlib import Path

from alembic import op

revision = "0095"
down_revision = "0094"
runs_from = "0069"
alters = ("invoice", "organization", "payment")
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, note what notes gave back of their invoices until now, and prove what it says."""
    sql = (Path(__file__).parents[1] / "v0095" / "open_credit.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
