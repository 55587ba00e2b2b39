"""Models state their maximum of output tokens and their context size."""

from alembic import op

revision = "0122"
down_revision = "0121"
alters = ("model",)
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add a model's maximum of output tokens and its context size; older programs leave them empty."""
    op.execute(
        "ALTER TABLE model ADD output_max bigint CHECK (output_max BETWEEN 1 AND 100000000),"
        " ADD context bigint CHECK (context BETWEEN 1 AND 100000000)"
    )
