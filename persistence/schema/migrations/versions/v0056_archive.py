"""Months of the ledgers may go to an archive: what stands for them, and what must hold with them gone."""

from pathlib import Path

from alembic import op

revision = "0056"
down_revision = "0055"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the runs of movements that are archived, and have every proof go on across them."""
    sql = (Path(__file__).parents[1] / "v0056" / "archive.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
