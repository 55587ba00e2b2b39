"""Refused calls in the journal, what uses were for in every ledger, and how long the journal is kept."""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, the tables, and the function that drops months of the journal."""
    connection = op.get_bind()
    home = connection.exec_driver_sql("SELECT quote_literal(current_schema())").scalar_one()
    sql = (Path(__file__).parents[1] / "v0015" / "told.sql").read_text(encoding="utf-8")
    connection.exec_driver_sql(sql.replace(":home", home), execution_options={"no_parameters": True})
