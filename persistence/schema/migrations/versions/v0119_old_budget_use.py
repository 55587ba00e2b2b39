"""Use of budgets whose window ended long ago is found by the start of the window."""

revision = "0119"
down_revision = "0118"
alters = ()
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Change nothing: the index by which an hourly task finds old use is made behind the migrations."""
