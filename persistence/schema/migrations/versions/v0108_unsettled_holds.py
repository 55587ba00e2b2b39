"""An API key says what its holds cost that nobody settles."""

from alembic import op

revision = "0108"
down_revision = "0107"
alters = ("api_key",)
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE api_key ADD COLUMN unsettled text DEFAULT 'charge' NOT NULL
    CHECK (unsettled IN ('charge', 'release'));
"""


def upgrade() -> None:
    """Add the column; holds are charged until a key says otherwise."""
    op.execute(_STATEMENTS)
