"""When entries of the books are, and what is drawn of credits that were sold, by the day."""

from pathlib import Path

from alembic import op

revision = "0093"
down_revision = "0092"
runs_from = "0069"
alters = ("credit_addition", "credit_allocation", "organization")
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A function, and a table that a trigger fills: what runs already goes on without them."""
    sql = (Path(__file__).parents[1] / "v0093" / "drawdowns.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
