"""Of whom a provider of identities has named, letters and quarantines keep who it was that decided."""

from alembic import op

revision = "0081"
down_revision = "0080"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE dead_letter ADD COLUMN resolved_issuer TEXT, ADD COLUMN resolved_identity TEXT,
    ADD COLUMN resolved_person TEXT;
ALTER TABLE quarantine ADD COLUMN released_issuer TEXT, ADD COLUMN released_identity TEXT,
    ADD COLUMN released_person TEXT;"""


def upgrade() -> None:
    """Columns that may be null: what runs already goes on without them."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
