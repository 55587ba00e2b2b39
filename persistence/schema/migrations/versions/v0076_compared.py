"""Up to where a partition's data has what is defined, and which data that is."""

from alembic import op

revision = "0076"
down_revision = "0075"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE partition_state ADD COLUMN compared_run_id TEXT, ADD COLUMN compared_epoch BIGINT,
    ADD COLUMN compared_position BIGINT;"""


def upgrade() -> None:
    """Columns that may be null: what runs already goes on without them."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
