"""Calls are found by organization, tenant and key."""

revision = "0118"
down_revision = "0117"
alters = ()
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Change nothing: the index for lists of calls is made behind the migrations."""
