"""Roles of admin tokens, for all organizations or for one; and whose an entry of the audit log is."""

from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE admin_token DROP CONSTRAINT admin_token_role_check;
ALTER TABLE admin_token ADD CONSTRAINT admin_token_role_check
    CHECK (role IN ('admin', 'billing', 'operator', 'readonly'));
ALTER TABLE admin_token ADD COLUMN organization_id BIGINT
    CONSTRAINT admin_token_organization_id_fkey REFERENCES organization (id);
ALTER TABLE admin_token ADD COLUMN last_used_at TIMESTAMP WITH TIME ZONE;
CREATE INDEX admin_token_organization_id_idx ON admin_token (organization_id);
-- The role of who did it, and the organization whose row it was. Older entries say neither.
ALTER TABLE audit_log ADD COLUMN role TEXT;
ALTER TABLE audit_log ADD COLUMN organization_id BIGINT;
CREATE INDEX audit_log_organization_id_idx ON audit_log (organization_id, id)
    WHERE organization_id IS NOT NULL;"""


def upgrade() -> None:
    """Widen the roles and add the columns."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
