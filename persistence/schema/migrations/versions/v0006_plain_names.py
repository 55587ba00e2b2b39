"""A subscription has a status, as everything else that has one; a worker's row is named by its slot."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename two columns, and the constraint that has the name of one."""
    op.alter_column("organization_subscription", "standing", new_column_name="status")
    op.execute(
        "ALTER TABLE organization_subscription RENAME CONSTRAINT"
        " organization_subscription_standing_check TO organization_subscription_status_check"
    )
    op.alter_column("gateway_worker", "seat", new_column_name="worker_slot")
