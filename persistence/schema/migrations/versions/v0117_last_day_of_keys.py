"""API keys show the last day of their calls."""

from alembic import op

revision = "0117"
down_revision = "0116"
alters = ()
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index for the last day of a key's calls; older programs do not read it."""
    op.execute("CREATE INDEX usage_rollup_key_day_used ON usage_rollup_key_day (api_key_id, start)")
