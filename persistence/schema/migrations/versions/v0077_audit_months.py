"""The audit log is kept by months, as the ledgers are, so that old ones may go to an archive."""

from pathlib import Path

from alembic import op

revision = "0077"
down_revision = "0076"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the months, and put every entry into its own."""
    sql = (Path(__file__).parents[1] / "v0077" / "audit.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
