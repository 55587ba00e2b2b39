"""Admin tokens of an organization's own people, who look after its keys."""

from alembic import op

revision = "0067"
down_revision = "0066"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE admin_token DROP CONSTRAINT admin_token_role_check;
ALTER TABLE admin_token ADD CONSTRAINT admin_token_role_check
    CHECK (role IN ('admin', 'billing', 'operator', 'readonly')
           OR (role = 'member' AND organization_id IS NOT NULL));"""


def upgrade() -> None:
    """Widen the roles."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
