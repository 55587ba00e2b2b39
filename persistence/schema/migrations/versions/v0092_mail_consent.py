"""Mail that an organization's people ask for goes to addresses that agreed; webhooks count their mails."""

from alembic import op

revision = "0092"
down_revision = "0091"
runs_from = "0069"
alters = ("organization", "webhook")
branch_labels = None
depends_on = None

# A webhook that an organization's own token made, or gave its address, is theirs. All others are ours.
_STATEMENTS = """
ALTER TABLE webhook ADD COLUMN ours BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN hourly INTEGER DEFAULT 0 NOT NULL, ADD COLUMN hour TIMESTAMPTZ;
UPDATE webhook SET ours = true WHERE organization_id IS NULL OR NOT EXISTS (
    SELECT FROM audit_log AS a JOIN admin_token AS t ON t.id = a.admin_token_id
     WHERE a.resource = 'webhooks' AND a.resource_id = webhook.id::text AND t.organization_id IS NOT NULL
       AND (a.action = 'create'
            OR a.action = 'change' AND a.before->>'url' IS DISTINCT FROM a.after->>'url'));
CREATE TABLE mail_consent (
    organization_id BIGINT NOT NULL REFERENCES organization (id),
    address TEXT NOT NULL,
    mailbox TEXT NOT NULL,
    digest TEXT UNIQUE,
    asked_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    expires_at TIMESTAMPTZ,
    given_at TIMESTAMPTZ,
    PRIMARY KEY (organization_id, address)
);
CREATE INDEX mail_consent_mailbox_idx ON mail_consent (mailbox, asked_at);"""


def upgrade() -> None:
    """Columns and a table that what runs already knows nothing of, and needs not."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
