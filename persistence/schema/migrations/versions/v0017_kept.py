"""How long the journal and the hours of its roll-ups are kept."""

from pathlib import Path

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the function that drops months of either, and since when each has its rows."""
    connection = op.get_bind()
    home = connection.exec_driver_sql("SELECT quote_literal(current_schema())").scalar_one()
    sql = (Path(__file__).parents[1] / "v0017" / "kept.sql").read_text(encoding="utf-8")
    connection.exec_driver_sql(sql.replace(":home", home), execution_options={"no_parameters": True})
