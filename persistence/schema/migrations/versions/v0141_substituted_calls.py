"""Calls that a step of a budget sent as another model: the model asked for, the budget, and what it saved."""

from alembic import op

revision = "0141"
down_revision = "0140"
alters = ("call", "usage_outbox", "usage_rollup", "usage_tag")
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add the columns; earlier programs know no steps, so they leave all empty."""
    op.execute(
        "ALTER TABLE call ADD model_asked text, ADD substituted_by jsonb, ADD saved bigint,"
        " ADD CONSTRAINT call_substituted_by_check CHECK (jsonb_typeof(substituted_by) = 'object') NOT VALID;"
        "ALTER TABLE usage_outbox ADD model_asked text, ADD substituted_by text;"
        "ALTER TABLE usage_rollup ADD saved bigint DEFAULT 0 NOT NULL;"
        "ALTER TABLE usage_tag ADD saved bigint DEFAULT 0 NOT NULL;"
    )
