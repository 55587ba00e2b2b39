"""Events of an organization's own callers have names of their own: nobody's are taken by another's."""

from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE use_event ADD COLUMN teller BIGINT DEFAULT 0 NOT NULL;
ALTER TABLE use_event DROP CONSTRAINT use_event_source_event_id_key;
ALTER TABLE use_event ADD CONSTRAINT use_event_teller_source_event_id_key
    UNIQUE (teller, source, event_id);
CREATE INDEX use_event_source_event_id_idx ON use_event (source, event_id);"""


def upgrade() -> None:
    """Add whose caller told an event to what names it."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
