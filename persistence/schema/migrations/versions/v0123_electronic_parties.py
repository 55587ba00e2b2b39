"""Organizations have a contact, a buyer reference and an endpoint for electronic invoices; more formats."""

from alembic import op

revision = "0123"
down_revision = "0122"
alters = ("invoice_document", "organization")
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add contact, buyer reference and endpoint to organizations, and allow more formats of documents.

    Older programs leave the columns empty.
    """
    op.execute(
        "ALTER TABLE organization ADD contact jsonb CHECK (jsonb_typeof(contact) = 'object'),"
        " ADD buyer_reference text, ADD endpoint_id text"
    )
    op.execute(
        "ALTER TABLE invoice_document DROP CONSTRAINT invoice_document_format_check,"
        " ADD CONSTRAINT invoice_document_format_check"
        " CHECK (format IN ('pdf', 'factur-x', 'ubl', 'xrechnung', 'xrechnung-ubl', 'peppol')) NOT VALID"
    )
