"""Months whose partitions are of days."""

from pathlib import Path

from alembic import op

revision = "0075"
down_revision = "0074"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Partitions ahead are made by month or by day; programs that know of no days make them by month."""
    connection = op.get_bind()
    asked = "SELECT quote_literal(current_schema()), quote_ident(current_schema())"
    home, schema = connection.exec_driver_sql(asked).one()
    sql = (Path(__file__).parents[1] / "v0075" / "days.sql").read_text(encoding="utf-8")
    sql = sql.replace(":home", home).replace(":schema", schema)
    connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
