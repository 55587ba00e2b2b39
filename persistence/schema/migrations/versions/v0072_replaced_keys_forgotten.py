"""A key that goes leaves the keys it stood in the place of without one, whichever program deletes it."""

from alembic import op

revision = "0072"
down_revision = "0071"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE api_key DROP CONSTRAINT api_key_replaced_by_id_fkey,
    ADD CONSTRAINT api_key_replaced_by_id_fkey
        FOREIGN KEY (replaced_by_id) REFERENCES api_key (id) ON DELETE SET NULL;"""


def upgrade() -> None:
    """Programs that do not know the column delete a key as they always did."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
