"""A model says how many tokens its answers and its context have."""

from alembic import op

revision = "0122"
down_revision = "0121"
alters = ("model",)
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both columns; programs of before leave them empty."""
    op.execute(
        "ALTER TABLE model ADD output_max bigint CHECK (output_max BETWEEN 1 AND 100000000),"
        " ADD context bigint CHECK (context BETWEEN 1 AND 100000000)"
    )
