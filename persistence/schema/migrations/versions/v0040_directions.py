"""Amendments charge a call more, too."""

from pathlib import Path

from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of an amendment which way it moves, and owe what it adds to a cycle that is over."""
    sql = (Path(__file__).parents[1] / "v0040" / "directions.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
