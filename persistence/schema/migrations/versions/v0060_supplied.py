"""Units that are told late are charged by the day of their supply, and taxed with its rate."""

from pathlib import Path

from alembic import op

revision = "0060"
down_revision = "0059"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keep which units of a day were supplied on another one."""
    sql = (Path(__file__).parents[1] / "v0060" / "supplied.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
