"""What a cycle of tokens was sold with is kept, and when what an amendment corrects was counted."""

from pathlib import Path

from alembic import op

revision = "0069"
down_revision = "0068"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keep all that a token plan says since when, and when what is amended came into the ledger."""
    sql = (Path(__file__).parents[1] / "v0069" / "sold.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
