"""Token plans may weigh kinds of tokens: a cached read a tenth, say."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the weights, decimal strings by kind; in plans without any, every token counts one."""
    op.execute(
        "ALTER TABLE token_plan ADD COLUMN weights JSONB"
        " CONSTRAINT token_plan_weights_check CHECK (jsonb_typeof(weights) = 'object')"
    )
