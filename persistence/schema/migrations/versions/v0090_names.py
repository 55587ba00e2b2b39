"""Names of organizations, tenants and plans are unique, and calls are listed in the order of time."""

from alembic import op

revision = "0090"
down_revision = "0089"
runs_from = "0069"
branch_labels = None
depends_on = None

# Of rows with one name the first keeps it; the others have their id behind it.
_RENAME = """
UPDATE {table} AS t SET name = left(t.name, 170) || ' (' || t.id || ')', updated_at = now()
  FROM (SELECT id, row_number() OVER (PARTITION BY {owner}name ORDER BY id) AS place
          FROM {table} WHERE deleted_at IS NULL) AS n
 WHERE n.id = t.id AND n.place > 1;
CREATE UNIQUE INDEX {table}_name_key ON {table} ({owner}name) WHERE deleted_at IS NULL;"""
_NAMED = {"organization": "", "tenant": "organization_id, ", "token_plan": "", "subscription_plan": ""}
_CALLS = """
DROP INDEX call_created_at_idx, call_user_id_idx, call_project_id_idx;
CREATE INDEX call_created_at_idx ON call (created_at, id);
CREATE INDEX call_user_id_idx ON call (user_id, created_at, id) WHERE user_id IS NOT NULL;
CREATE INDEX call_project_id_idx ON call (project_id, created_at, id) WHERE project_id IS NOT NULL;"""


def upgrade() -> None:
    """What runs already goes on: it refuses nothing that the indexes refuse, and is told of it."""
    statements = "".join(_RENAME.format(table=table, owner=owner) for table, owner in _NAMED.items()) + _CALLS
    op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})
