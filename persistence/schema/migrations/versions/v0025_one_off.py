"""Invoices of one source alone, which need no period."""

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of an invoice what alone it bills."""
    op.get_bind().exec_driver_sql(
        "ALTER TABLE invoice ADD COLUMN source TEXT CONSTRAINT invoice_source_check"
        " CHECK (source IN ('subscription_segment', 'credit_addition')), ADD COLUMN source_id BIGINT,"
        " ADD CONSTRAINT invoice_source_id_check CHECK (source_id IS NULL OR source IS NOT NULL)"
    )
