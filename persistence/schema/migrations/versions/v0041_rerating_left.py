"""Calls beyond those that a price rates again at once are rated later, in pieces."""

from pathlib import Path

from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add how far a price has rated."""
    sql = (Path(__file__).parents[1] / "v0041" / "rerating_left.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
