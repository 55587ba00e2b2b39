"""What settles late is charged once, also where months are archived and clocks are wrong."""

from pathlib import Path

from alembic import op

revision = "0061"
down_revision = "0060"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Note which ids lie about their time, and let a settlement be charged that no archive has."""
    sql = (Path(__file__).parents[1] / "v0061" / "late.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
