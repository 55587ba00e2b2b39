"""Roll-ups of calls at several levels, each with partitions of its own."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the levels of the roll-ups that are there."""
    connection = op.get_bind()
    home = connection.exec_driver_sql("SELECT quote_literal(current_schema())").scalar_one()
    sql = (Path(__file__).parents[1] / "v0011" / "levels.sql").read_text(encoding="utf-8")
    connection.exec_driver_sql(sql.replace(":home", home), execution_options={"no_parameters": True})
