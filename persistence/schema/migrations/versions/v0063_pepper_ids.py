"""Each credential says under which pepper its digest is; of older ones nobody knows it."""

from alembic import op

revision = "0063"
down_revision = "0062"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE api_key ADD COLUMN pepper text;
ALTER TABLE admin_token ADD COLUMN pepper text;"""


def upgrade() -> None:
    """Columns that may be null: what runs already goes on without them."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
