"""Keys that others stand in the place of."""

from alembic import op

revision = "0071"
down_revision = "0070"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE api_key ADD COLUMN replaced_by_id BIGINT REFERENCES api_key (id);
CREATE INDEX api_key_replaced_by ON api_key (replaced_by_id) WHERE replaced_by_id IS NOT NULL;"""


def upgrade() -> None:
    """A column that may be null: what runs already goes on without it."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
