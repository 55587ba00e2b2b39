"""Windows of budgets count as far as the counters do, and each amount that is reached is told."""

from pathlib import Path

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bound what is stored, and remember which amount was told."""
    sql = (Path(__file__).parents[1] / "v0024" / "full.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
