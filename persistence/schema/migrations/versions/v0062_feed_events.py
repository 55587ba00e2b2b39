"""An event of a usage feed is of the feed in whose time it was used."""

from pathlib import Path

from alembic import op

revision = "0062"
down_revision = "0061"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give each event its feed, and let a feed be dropped."""
    sql = (Path(__file__).parents[1] / "v0062" / "feed_events.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
