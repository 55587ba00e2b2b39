"""Why invoices on schedule were left, by kind: so many may be counted where a sentence can only be read."""

from alembic import op

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE organization ADD COLUMN invoicing_left_reason TEXT;
UPDATE organization SET invoicing_left_reason = 'refused' WHERE invoicing_left IS NOT NULL;
ALTER TABLE organization ADD CONSTRAINT organization_invoicing_left_check
    CHECK ((invoicing_left IS NULL) = (invoicing_left_reason IS NULL));
CREATE INDEX organization_invoicing_left_idx ON organization (invoicing_left_reason)
    WHERE invoicing_left IS NOT NULL;"""


def upgrade() -> None:
    """Add the reason to organizations."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
