"""Which provider has named a person in the audit log, and who that is there for good."""

from alembic import op

revision = "0073"
down_revision = "0072"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = "ALTER TABLE audit_log ADD COLUMN issuer TEXT, ADD COLUMN identity TEXT;"


def upgrade() -> None:
    """Columns that may be null: what runs already goes on without them."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
