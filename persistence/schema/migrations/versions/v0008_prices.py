"""What models cost: prices that are added to and never changed."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of prices; a keeper that finds it empty of the bundled list puts that in."""
    sql = (Path(__file__).parents[1] / "v0008" / "prices.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
