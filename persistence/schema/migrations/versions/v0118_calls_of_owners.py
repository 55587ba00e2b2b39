"""Calls are found by organization, tenant and key."""

from alembic import op

revision = "0118"
down_revision = "0117"
alters = ("call",)
runs_from = "0100"
version = "1.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index for lists of an organization's, tenant's or key's calls; older programs ignore it."""
    op.execute("CREATE INDEX call_owner_idx ON call (organization_id, tenant_id, created_at, id)")
