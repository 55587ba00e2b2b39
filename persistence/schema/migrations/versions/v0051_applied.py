"""Which rows files of configuration said, and which of them applying made."""

from alembic import op

revision = "0051"
down_revision = "0050"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE applied_row (
    owner BIGINT DEFAULT 0 NOT NULL,
    name TEXT NOT NULL,
    resource TEXT NOT NULL,
    row_id BIGINT NOT NULL,
    -- Those that files said last: one that they leave out later has its default again.
    fields JSONB NOT NULL,
    made BOOLEAN NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT applied_row_pkey PRIMARY KEY (owner, name, resource, row_id)
);"""


def upgrade() -> None:
    """Make the table of marks."""
    op.get_bind().exec_driver_sql(_STATEMENTS)
