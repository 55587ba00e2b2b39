"""API keys say whether a request may name its user."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what a key makes of a request's user; keys that are there accept it, as before."""
    op.execute(
        "ALTER TABLE api_key ADD COLUMN user_header TEXT DEFAULT 'accept' NOT NULL"
        " CONSTRAINT api_key_user_header_check CHECK (user_header IN ('accept', 'require', 'ignore'))"
    )
