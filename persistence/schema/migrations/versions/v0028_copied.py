"""What an invoice copies of seller, buyer and terms; a negative sum that is a credit note."""

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE organization ADD COLUMN address JSONB, ADD COLUMN tax_number TEXT,
    ADD COLUMN country TEXT CONSTRAINT organization_country_check CHECK (country ~ '^[A-Z]{2}$');
ALTER TABLE invoice ADD COLUMN document JSONB, DROP CONSTRAINT invoice_corrects_check,
    ADD CONSTRAINT invoice_corrects_check CHECK (corrects_id IS NULL OR kind = 'credit_note');
ALTER TABLE invoice_line ADD COLUMN service TEXT, ADD COLUMN tenant TEXT;"""


def upgrade() -> None:
    """Add what is copied; what was final before has none of it, and stays as it is."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
