"""What is not billed yet is rated again where a price comes into force before now."""

from pathlib import Path

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what was rated again."""
    sql = (Path(__file__).parents[1] / "v0031" / "reratings.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
