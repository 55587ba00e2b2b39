"""Keys that expire soon are found by an index."""

revision = "0137"
down_revision = "0136"
alters = ()
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Change nothing: the index is made behind the migrations."""
