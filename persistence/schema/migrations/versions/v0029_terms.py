"""What is agreed of a subscription: quarters, billing as one, trial, discount, minimum, prices of its own."""

from pathlib import Path

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the terms, and prove charges with them."""
    sql = (Path(__file__).parents[1] / "v0029" / "terms.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
