"""People of a provider of identities: admin tokens that are no secret, and who it was in sessions."""

from alembic import op

revision = "0064"
down_revision = "0063"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE admin_token ADD COLUMN issuer TEXT, ADD COLUMN subject TEXT;
ALTER TABLE admin_token ADD CONSTRAINT admin_token_subject_check
    CHECK ((issuer IS NULL) = (subject IS NULL));
-- Whom a provider named: for good, and as people know them.
ALTER TABLE console_session ADD COLUMN issuer TEXT, ADD COLUMN identity TEXT, ADD COLUMN person TEXT;
ALTER TABLE console_session ADD CONSTRAINT console_session_person_check
    CHECK (num_nulls(issuer, identity, person) IN (0, 3));
ALTER TABLE audit_log ADD COLUMN person TEXT;"""


def upgrade() -> None:
    """Let admin tokens stand for people, and say who it was."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
