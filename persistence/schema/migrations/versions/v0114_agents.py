"""Agents sign in: devices that ask, and the sign-ins that came of them."""

from alembic import op

revision = "0114"
down_revision = "0113"
alters = ()
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE agent_sign_in (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seed text NOT NULL,
    user_code text NOT NULL UNIQUE,
    agent text NOT NULL,
    site text NOT NULL,
    state text DEFAULT 'asked' NOT NULL CHECK (state IN ('asked', 'approved', 'denied', 'given')),
    generation integer DEFAULT 0 NOT NULL,
    token_id bigint,
    api_key_id bigint,
    earlier_key_id bigint,
    issuer text,
    identity text,
    person text,
    created_at timestamptz DEFAULT now() NOT NULL,
    renewed_at timestamptz,
    expires_at timestamptz NOT NULL
);
CREATE INDEX agent_sign_in_expires_at ON agent_sign_in (expires_at);
"""


def upgrade() -> None:
    """Make the table; programs of before do without it."""
    op.execute(_STATEMENTS)
