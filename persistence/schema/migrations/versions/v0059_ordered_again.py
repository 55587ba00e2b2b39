"""Credits may be ordered again at a movement whose order nobody will give: a person asks for them anew."""

from alembic import op

revision = "0059"
down_revision = "0058"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE top_up_order DROP CONSTRAINT top_up_order_organization_id_seq_key;
CREATE INDEX top_up_order_organization_id_idx ON top_up_order (organization_id, created_at);"""


def upgrade() -> None:
    """An open order is still the only one of its organization."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
