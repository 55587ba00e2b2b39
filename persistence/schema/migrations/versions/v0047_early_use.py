"""Tokens used ahead of the days that pay for them, where a plan ends inside a cycle."""

from pathlib import Path

from alembic import op

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the ends of plans, and a kind of charges and lines for what they owe."""
    sql = (Path(__file__).parents[1] / "v0047" / "early_use.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
