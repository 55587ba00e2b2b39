"""Use that did not pass the gateway is told by events, each once."""

from pathlib import Path

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the events, and count what they tell of cycles that are over."""
    sql = (Path(__file__).parents[1] / "v0026" / "events.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
