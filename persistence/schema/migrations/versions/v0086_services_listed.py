"""An organization says which services it may use; a price that it negotiated does not."""

from alembic import op

revision = "0086"
down_revision = "0085"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE organization ADD COLUMN services TEXT DEFAULT 'all' NOT NULL
    CONSTRAINT organization_services_check CHECK (services IN ('all', 'listed'));"""


def upgrade() -> None:
    """A column with a default: what runs already goes on without it."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
