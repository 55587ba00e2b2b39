"""A price may stand in another one's place, as if that had never been; its calls are rated again."""

from alembic import op

revision = "0131"
down_revision = "0130"
alters = ("invoice", "organization", "price", "rerating", "rerating_left")
runs_from = "0100"
version = "1.1.0"

_STATEMENTS = """
ALTER TABLE price ADD amends_id bigint UNIQUE REFERENCES price(id), ADD amend_reason text,
    ADD CONSTRAINT price_amend_check CHECK ((amends_id IS NULL) = (amend_reason IS NULL));
DROP INDEX price_same_key;
CREATE UNIQUE INDEX price_same_key
    ON price (lower(model), match, currency, source, lower(COALESCE(provider, '')), effective_from)
    WHERE amends_id IS NULL;
ALTER TABLE rerating ADD credits bigint DEFAULT 0 NOT NULL;
ALTER TABLE rerating_left ADD rated_at timestamptz, ADD looked_at timestamptz DEFAULT now() NOT NULL,
    ADD of_parts boolean DEFAULT false NOT NULL;
CREATE TABLE rerating_bill (
    price_id bigint NOT NULL REFERENCES price(id),
    organization_id bigint NOT NULL REFERENCES organization(id),
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (price_id, organization_id)
);
ALTER TABLE invoice DROP CONSTRAINT invoice_source_check, ADD CONSTRAINT invoice_source_check
    CHECK (source IN ('subscription_segment', 'credit_addition', 'usage')) NOT VALID;
"""


def upgrade() -> None:
    """Add the columns and the table; older programs set no such price."""
    op.execute(_STATEMENTS)
