"""The tax of each line of an invoice, as it was when the line was made."""

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE invoice_line
    ADD COLUMN tax_rate NUMERIC CONSTRAINT invoice_line_tax_rate_check CHECK (tax_rate BETWEEN 0 AND 1),
    ADD COLUMN tax_category TEXT CONSTRAINT invoice_line_tax_category_check CHECK (tax_category IN
        ('standard', 'zero', 'exempt', 'reverse_charge', 'outside_scope', 'export')),
    ADD COLUMN tax_reason TEXT;"""


def upgrade() -> None:
    """Add the columns."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
