"""What calls cost beyond whole credits, carried in their organization's account."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it to uses and accounts; before, every call was charged whole credits."""
    sql = (Path(__file__).parents[1] / "v0010" / "carried.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
