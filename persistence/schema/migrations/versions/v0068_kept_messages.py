"""What a billing service told of documents is forgotten in time."""

from pathlib import Path

from alembic import op

revision = "0068"
down_revision = "0067"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let old messages be deleted, and no other ones."""
    sql = (Path(__file__).parents[1] / "v0068" / "kept_messages.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
