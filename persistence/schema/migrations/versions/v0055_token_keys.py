"""API keys that are no secret: signed tokens of an issuer's subject stand for them."""

from alembic import op

revision = "0055"
down_revision = "0054"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE api_key ADD COLUMN issuer TEXT, ADD COLUMN subject TEXT;
ALTER TABLE api_key ADD CONSTRAINT api_key_subject_check CHECK ((issuer IS NULL) = (subject IS NULL));"""


def upgrade() -> None:
    """Let a key say whose tokens stand for it."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
