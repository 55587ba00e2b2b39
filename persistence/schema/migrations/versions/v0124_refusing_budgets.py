"""A call says which run it is of, and which budget, run or plan refused it."""

from alembic import op

revision = "0124"
down_revision = "0123"
alters = ("call",)
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, which programs of before leave empty; a constraint would read every call there is."""
    op.execute("ALTER TABLE call ADD run_id bigint, ADD refused_kind text, ADD refused_by bigint")
