"""When what a line of an invoice bills was supplied."""

from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None

_STATEMENT = """
ALTER TABLE invoice_line ADD COLUMN period_start DATE, ADD COLUMN period_end DATE,
    ADD CONSTRAINT invoice_line_period_check CHECK (period_end > period_start)"""


def upgrade() -> None:
    """Keep it with each line; older ones do not say."""
    op.get_bind().exec_driver_sql(_STATEMENT)
