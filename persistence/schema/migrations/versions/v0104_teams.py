"""Admin tokens of one tenant, and budgets that its leads made."""

from alembic import op

revision = "0104"
down_revision = "0103"
alters = ("admin_token", "budget", "tenant")
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE admin_token ADD COLUMN tenant_id bigint REFERENCES tenant(id);
ALTER TABLE admin_token ADD CONSTRAINT admin_token_team_check CHECK (
    (tenant_id IS NULL) OR ((organization_id IS NOT NULL) AND (NOT ours)
    AND (role IN ('operator', 'member', 'readonly'))));
CREATE INDEX admin_token_tenant_id_idx ON admin_token (tenant_id);
ALTER TABLE budget ADD COLUMN of_team boolean DEFAULT false NOT NULL;
"""


def upgrade() -> None:
    """Add the columns: nobody is narrowed, and no budget is a team's."""
    op.execute(_STATEMENTS)
