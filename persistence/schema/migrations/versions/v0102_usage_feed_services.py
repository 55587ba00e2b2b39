"""A usage feed may be a webhook or a file."""

from alembic import op

revision = "0102"
down_revision = "0101"
alters = ("usage_feed",)
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE usage_feed DROP CONSTRAINT usage_feed_service_check;
ALTER TABLE usage_feed ADD CONSTRAINT usage_feed_service_check
    CHECK (service IN ('lago', 'openmeter', 'webhook', 'file'));
"""


def upgrade() -> None:
    """Let two more services be told."""
    op.execute(_STATEMENTS)
