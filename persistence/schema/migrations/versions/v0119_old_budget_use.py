"""Use of budgets whose window ended long ago is found by the start of the window."""

from alembic import op

revision = "0119"
down_revision = "0118"
alters = ("budget_use",)
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index by which an hourly task finds old use of budgets.

    The index is on the start of a window, which never changes, so updates of use do not touch it.
    """
    op.execute("CREATE INDEX budget_use_start_idx ON budget_use (start) WHERE start > 'epoch'")
