"""API keys show the last day of their calls."""

revision = "0117"
down_revision = "0116"
alters = ()
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Change nothing: the index for the last day of a key's calls is made behind the migrations."""
