"""Keepers have the partitions among them by what they say in PostgreSQL."""

from pathlib import Path

from alembic import op

revision = "0070"
down_revision = "0069"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add who is there, and who flushes which partition."""
    sql = (Path(__file__).parents[1] / "v0070" / "shares.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
