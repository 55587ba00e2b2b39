"""The names that roll-ups of calls tell apart, bounded by organization and day."""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of names, with those that are told apart already."""
    sql = (Path(__file__).parents[1] / "v0012" / "names.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
