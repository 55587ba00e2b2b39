"""Uses whose units are money."""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of each use whether its units are; before, none were."""
    sql = (Path(__file__).parents[1] / "v0014" / "in_money.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
