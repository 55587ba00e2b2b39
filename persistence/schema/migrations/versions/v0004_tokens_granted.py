"""A quota says what was granted beyond an unlimited plan, for a rebuild to know it again."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; of what is there nothing more is known than that nothing counts."""
    op.execute(
        "ALTER TABLE tenant_quota ADD COLUMN tokens_granted BIGINT DEFAULT 0 NOT NULL"
        " CONSTRAINT tenant_quota_tokens_granted_check"
        ' CHECK ("tokens_granted" BETWEEN -9007199254740991 AND 9007199254740991)'
    )
