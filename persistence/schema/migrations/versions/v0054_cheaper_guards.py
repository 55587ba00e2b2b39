"""Guards of charges and lines cost less, and so does the proof that each day is charged once."""

from pathlib import Path

from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Exchange what guards and proves."""
    sql = (Path(__file__).parents[1] / "v0054" / "cheaper.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
