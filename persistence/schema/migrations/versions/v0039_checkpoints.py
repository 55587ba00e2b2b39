"""What accounts came to by the end of each month, so that comparing reads the open one alone."""

from pathlib import Path

from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, what is in force of it, and what proves it."""
    sql = (Path(__file__).parents[1] / "v0039" / "checkpoints.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
