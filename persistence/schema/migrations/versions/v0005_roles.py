"""A keeper owns nothing: what it may make, partitions of the ledgers, is made with the owner's rights.

Who may do what is in `persistence.schema.grants`, which each migrate applies.
"""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Put the function in the place of the one that ran with its caller's rights."""
    connection = op.get_bind()
    home = connection.exec_driver_sql("SELECT quote_literal(current_schema())").scalar_one()
    sql = (Path(__file__).parents[1] / "v0005" / "partitions.sql").read_text(encoding="utf-8")
    connection.exec_driver_sql(sql.replace(":home", home), execution_options={"no_parameters": True})
