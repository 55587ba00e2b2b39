"""Organizations and API keys set the status with which calls over a spent amount are refused."""

from alembic import op

revision = "0121"
down_revision = "0120"
alters = ("api_key", "organization")
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add the status of refused calls and the longest `Retry-After` to API keys and organizations.

    Older programs leave both columns empty.
    """
    for table in alters:
        op.execute(
            f"ALTER TABLE {table} ADD spent_status smallint CHECK (spent_status IN (402, 429)),"
            " ADD retry_after_max_s integer CHECK (retry_after_max_s > 0)"
        )
