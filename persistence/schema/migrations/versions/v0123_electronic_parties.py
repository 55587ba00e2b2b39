"""Organizations have a contact, a reference and an endpoint for electronic invoices; profiles are kept."""

from alembic import op

revision = "0123"
down_revision = "0122"
alters = ("invoice_document", "organization")
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, which programs of before leave empty, and let documents be of other profiles."""
    op.execute(
        "ALTER TABLE organization ADD contact jsonb CHECK (jsonb_typeof(contact) = 'object'),"
        " ADD buyer_reference text, ADD endpoint_id text"
    )
    op.execute(
        "ALTER TABLE invoice_document DROP CONSTRAINT invoice_document_format_check,"
        " ADD CONSTRAINT invoice_document_format_check"
        " CHECK (format IN ('pdf', 'factur-x', 'ubl', 'xrechnung', 'xrechnung-ubl', 'peppol'))"
    )
