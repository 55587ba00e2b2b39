"""Lists of models of organizations, tenants and users."""

from alembic import op

revision = "0107"
down_revision = "0106"
alters = ("app_user", "organization", "tenant")
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE organization ADD COLUMN models jsonb;
ALTER TABLE tenant ADD COLUMN models jsonb;
ALTER TABLE app_user ADD COLUMN models jsonb;
CREATE INDEX tenant_models_idx ON tenant (organization_id) WHERE models IS NOT NULL;
CREATE INDEX app_user_models_idx ON app_user (organization_id) WHERE models IS NOT NULL;
"""


def upgrade() -> None:
    """Add the columns: any model may be asked for."""
    op.execute(_STATEMENTS)
