"""Organizations that have credits bought by themselves are found by an index."""

from alembic import op

revision = "0087"
down_revision = "0086"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE INDEX organization_auto_top_up_idx ON organization (id)
    WHERE auto_top_up IS NOT NULL AND deleted_at IS NULL;"""


def upgrade() -> None:
    """An index alone: what runs already goes on without it."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
