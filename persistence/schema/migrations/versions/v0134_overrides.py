"""Budgets with `each` have amounts of single owners, and may have an amount for each tenant."""

from alembic import op

revision = "0134"
down_revision = "0133"
alters = ("budget",)
runs_from = "0100"
version = "1.1.0"

_STATEMENTS = """
CREATE TABLE budget_override (
    budget_id bigint NOT NULL REFERENCES budget(id),
    value text NOT NULL,
    name text NOT NULL CHECK (name <> ''),
    amount numeric CHECK (amount >= 0),
    until timestamptz,
    reason text CHECK (reason <> ''),
    PRIMARY KEY (budget_id, value)
);
ALTER TABLE budget DROP CONSTRAINT budget_each_check,
      ADD CONSTRAINT budget_each_check CHECK (each IN ('user', 'key', 'project', 'session', 'tenant'));
"""


def upgrade() -> None:
    """Add the table, and the kind of owner; older programs set neither."""
    op.execute(_STATEMENTS)
