"""Uses whose units are money."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of each use whether its units are; before, none were."""
    sql = (Path(__file__).parents[1] / "v0013" / "in_money.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
