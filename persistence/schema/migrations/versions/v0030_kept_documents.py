"""Documents that are kept as they were made, and the currency of a subscription plan."""

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE invoice_document (
    invoice_id BIGINT NOT NULL,
    format TEXT NOT NULL CONSTRAINT invoice_document_format_check
        CHECK (format IN ('pdf', 'factur-x', 'ubl')),
    status TEXT NOT NULL CONSTRAINT invoice_document_status_check CHECK (status IN ('finalized', 'void')),
    sha256 TEXT NOT NULL CONSTRAINT invoice_document_sha256_check CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    content BYTEA NOT NULL CONSTRAINT invoice_document_content_check
        CHECK (octet_length(content) <= 33554432),
    made_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT invoice_document_pkey PRIMARY KEY (invoice_id, format, status),
    CONSTRAINT invoice_document_invoice_id_fkey FOREIGN KEY(invoice_id) REFERENCES invoice (id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON invoice_document
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON invoice_document EXECUTE FUNCTION refuse_change();
-- A plan costs what its subscribers pay in, where all of them pay in the same.
ALTER TABLE subscription_plan ADD COLUMN currency TEXT DEFAULT 'USD' NOT NULL
    CONSTRAINT subscription_plan_currency_check CHECK (currency ~ '^[A-Z]{3}$');
UPDATE subscription_plan AS p SET currency = o.currency
  FROM (SELECT s.plan_id, min(g.currency) AS currency FROM subscription_segment AS s
          JOIN organization AS g ON g.id = s.organization_id
         GROUP BY 1 HAVING count(DISTINCT g.currency) = 1) AS o
 WHERE o.plan_id = p.id AND p.currency <> o.currency;"""


def upgrade() -> None:
    """Make the table and the column."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
