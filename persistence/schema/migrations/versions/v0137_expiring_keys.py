"""Keys that expire soon are found by an index."""

from alembic import op

revision = "0137"
down_revision = "0136"
alters = ("api_key",)
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index; older programs do not read by it."""
    op.execute(
        "CREATE INDEX api_key_expires_at_idx ON api_key (expires_at)"
        " WHERE expires_at IS NOT NULL AND revoked_at IS NULL"
    )
