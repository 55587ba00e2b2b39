"""Calls have the id of their run, and the kind and id of the budget, run or plan that refused them."""

from alembic import op

revision = "0124"
down_revision = "0123"
alters = ("call",)
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add the columns, which older programs leave empty, without constraints that would read every call."""
    op.execute("ALTER TABLE call ADD run_id bigint, ADD refused_kind text, ADD refused_by bigint")
