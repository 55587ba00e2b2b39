"""Budgets with `each` have raises of single owners, and raise requests name the one to be raised."""

from alembic import op

revision = "0128"
down_revision = "0127"
alters = ("budget", "raise_request")
runs_from = "0100"
version = "1.1.0"

_STATEMENTS = """
CREATE TABLE budget_raise (
    budget_id bigint NOT NULL REFERENCES budget(id),
    value text NOT NULL,
    name text NOT NULL CHECK (name <> ''),
    amount numeric NOT NULL CHECK (amount > 0),
    until timestamptz NOT NULL,
    reason text NOT NULL CHECK (reason <> ''),
    PRIMARY KEY (budget_id, value)
);
ALTER TABLE raise_request ADD who text CHECK (who <> '');
UPDATE raise_request AS r SET who = CASE b.each
    WHEN 'key' THEN substring(r.requested_by FROM '^key:([0-9]{1,18})$')
    WHEN 'user' THEN nullif(coalesce(
        (SELECT k."user" FROM api_key AS k
          WHERE k.id = substring(r.requested_by FROM '^key:([0-9]{1,18})$')::bigint),
        (SELECT u.external_id FROM admin_token AS t JOIN app_user AS u ON u.id = t.user_id
          WHERE t.id = substring(r.requested_by FROM '^token:([0-9]{1,18})$')::bigint)), '') END
  FROM budget AS b WHERE b.id = r.budget_id AND r.status = 'open';
"""


def upgrade() -> None:
    """Add the table and the column, and name who waits; older programs raise everybody, as before."""
    op.execute(_STATEMENTS)
