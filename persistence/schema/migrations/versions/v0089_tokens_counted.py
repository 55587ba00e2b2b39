"""A service counts tokens as its business model says, unless it or an organization's price says otherwise.

The services that are always there were made with `counts_tokens`. Where nobody set that since, they go by
their business model: what is paid by the call or at cost uses up no plan besides.
"""

from alembic import op

revision = "0089"
down_revision = "0088"
runs_from = "0069"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE service ADD COLUMN counts_none BOOLEAN DEFAULT false NOT NULL;
ALTER TABLE organization_service ADD COLUMN counts_tokens BOOLEAN;
UPDATE service AS s SET counts_tokens = false
 WHERE s.key IN ('chat', 'completions', 'responses', 'embeddings', 'messages', 'gemini') AND s.counts_tokens
   AND NOT EXISTS (SELECT FROM audit_log AS a
                    WHERE a.resource = 'services' AND a.resource_id = s.id::text
                      AND a.before->'counts_tokens' IS DISTINCT FROM a.after->'counts_tokens');
INSERT INTO control_write (id, account, verb, payload)
SELECT gen_random_uuid(), 'catalogue', 'define', '{}' WHERE EXISTS (SELECT FROM organization);"""


def upgrade() -> None:
    """Neither column set says what it said before: older programs count as the business model says too."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
