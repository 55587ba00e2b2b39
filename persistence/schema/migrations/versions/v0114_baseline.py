"""The baseline: a database of this version is taken over as it is, one of a version before is refused.

An empty database never comes here. It is made from the files of today's schema, and has the newest version.
"""

revision = "0114"
down_revision = None
runs_from = "0100"
version = "1.0.0"
alters = ()
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing."""
