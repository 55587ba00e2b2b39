"""Sessions of people say what their provider is asked with whether they still may come in."""

from alembic import op

revision = "0066"
down_revision = "0065"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE console_session ADD COLUMN renewal TEXT;
ALTER TABLE console_session ADD COLUMN asked_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now();"""


def upgrade() -> None:
    """Let a provider be asked again."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
