"""The journal: one row a call, with what it used by kind and what it cost."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and have its partitions made as the ledgers' are."""
    connection = op.get_bind()
    home = connection.exec_driver_sql("SELECT quote_literal(current_schema())").scalar_one()
    sql = (Path(__file__).parents[1] / "v0007" / "calls.sql").read_text(encoding="utf-8")
    connection.exec_driver_sql(sql.replace(":home", home), execution_options={"no_parameters": True})
