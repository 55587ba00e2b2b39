"""Prices of sound that was read from a cache."""

from alembic import op

revision = "0130"
down_revision = "0129"
alters = ("price",)
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add a price of a million tokens of cached sound; older programs charge what cached text costs."""
    op.execute(
        "ALTER TABLE price ADD cache_audio numeric CHECK ((cache_audio >= 0) AND (scale(cache_audio) <= 6))"
    )
