"""Sessions of the console by the organization they are of, and sign-ins that somebody came back from."""

from alembic import op

revision = "0078"
down_revision = "0077"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE console_session ADD COLUMN organization_id BIGINT;
UPDATE console_session AS s SET organization_id = t.organization_id FROM admin_token AS t
 WHERE t.digest = s.token_digest AND t.organization_id IS NOT NULL;
CREATE TABLE used_sign_in (
    state TEXT PRIMARY KEY,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now()
);
CREATE INDEX used_sign_in_created_at ON used_sign_in (created_at);"""


def upgrade() -> None:
    """A column that may be null, and a table of its own: what runs already goes on without them."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
