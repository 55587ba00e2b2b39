"""Lists by user and project read the rows they show."""

from pathlib import Path

from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index what calls named of both."""
    sql = (Path(__file__).parents[1] / "v0043" / "lists.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
