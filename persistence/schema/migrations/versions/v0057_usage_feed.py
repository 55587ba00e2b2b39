"""What is used is told to a billing service as events, from an outbox of its own."""

from pathlib import Path

from alembic import op

revision = "0057"
down_revision = "0056"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the feed and its outbox."""
    sql = (Path(__file__).parents[1] / "v0057" / "usage_feed.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
