"""Sessions of the console as their provider knows them, and what it said of people whom it signed out."""

from alembic import op

revision = "0074"
down_revision = "0073"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE console_session ADD COLUMN provider_session TEXT, ADD COLUMN id_token TEXT;
CREATE TABLE told_sign_out (
    issuer TEXT NOT NULL,
    token_id TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer, token_id)
);"""


def upgrade() -> None:
    """Columns that may be null, and a table of its own: what runs already goes on without them."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
