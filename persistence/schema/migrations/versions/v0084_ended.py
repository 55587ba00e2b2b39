"""Events and reratings end some time after the calls that they explain, where that is said."""

from pathlib import Path

from alembic import op

revision = "0084"
down_revision = "0083"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let those of calls that are gone be deleted, and no other ones."""
    sql = (Path(__file__).parents[1] / "v0084" / "ended.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
