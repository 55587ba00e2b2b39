"""The baseline: a database of this version is migrated from here, one of an earlier version is refused.

An empty database skips it: its schema is created from the files of today's schema with the newest version.
"""

revision = "0114"
down_revision = None
runs_from = "0100"
version = "1.0.0"
alters = ()


def upgrade() -> None:
    """Change nothing."""
