"""Credits that are bought by themselves where a balance falls to a threshold."""

from pathlib import Path

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say when, and keep what a movement ordered: one at a time for each organization."""
    sql = (Path(__file__).parents[1] / "v0042" / "automatic.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
