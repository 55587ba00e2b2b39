"""Providers are asked repeatedly whether an agent's person may still sign in."""

from alembic import op

revision = "0116"
down_revision = "0115"
alters = ("agent_sign_in",)
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add the columns for renewals of agents' sign-ins; older programs ask no provider."""
    op.execute("ALTER TABLE agent_sign_in ADD COLUMN renewal text, ADD COLUMN asked_at timestamptz")
