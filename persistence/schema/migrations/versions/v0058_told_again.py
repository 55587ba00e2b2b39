"""What is told of a plan that has ended is looked at again, and so is debt that another plan carried on."""

from pathlib import Path

from alembic import op

revision = "0058"
down_revision = "0057"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Count what came behind the end of a plan, and keep what each end has come to."""
    sql = (Path(__file__).parents[1] / "v0058" / "told.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
