"""Rows of accounts are proven: segments of them, and signed heads."""

from alembic import op

revision = "0112"
down_revision = "0111"
alters = ()
runs_from = "0100"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE ledger_head (
    number bigint PRIMARY KEY CHECK (number > 0),
    body text NOT NULL,
    key bytea NOT NULL,
    signature bytea NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE ledger_segment (
    kind text NOT NULL CHECK (kind IN ('tenant', 'credits', 'spend')),
    owner_id bigint NOT NULL,
    number bigint NOT NULL,
    head bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    up_to bigint NOT NULL,
    root bytea NOT NULL,
    previous bytea NOT NULL,
    marks bytea NOT NULL,
    PRIMARY KEY (kind, owner_id, number),
    CONSTRAINT ledger_segment_seqs_check
        CHECK ((first_seq > 0) AND (last_seq >= first_seq) AND (up_to >= last_seq))
);
CREATE INDEX ledger_segment_head_idx ON ledger_segment (head);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger_head
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger_segment
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger_head EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger_segment EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    """Make both tables; keepers fill them where a setting names a key."""
    op.execute(_STATEMENTS)
