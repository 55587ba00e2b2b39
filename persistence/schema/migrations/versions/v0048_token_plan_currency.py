"""What the price of tokens beyond a plan is in."""

from alembic import op

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None

_STATEMENT = """
ALTER TABLE token_plan
    ADD COLUMN currency TEXT CONSTRAINT token_plan_currency_check CHECK (currency ~ '^[A-Z]{3}$')"""


def upgrade() -> None:
    """Let a plan say it; one that does not is in what an organization pays in."""
    op.get_bind().exec_driver_sql(_STATEMENT)
