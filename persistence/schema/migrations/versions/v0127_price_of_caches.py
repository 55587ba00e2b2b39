"""Prices of tokens that a provider keeps by the hour."""

from alembic import op

revision = "0127"
down_revision = "0126"
alters = ("price",)
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add a price of a million tokens kept for an hour; older programs charge nothing for it."""
    op.execute(
        "ALTER TABLE price ADD cache_hour numeric CHECK ((cache_hour >= 0) AND (scale(cache_hour) <= 6))"
    )
