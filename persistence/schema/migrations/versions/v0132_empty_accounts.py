"""Models go to their next target when an account of an upstream is out of money, unless they say otherwise."""

from alembic import op

revision = "0132"
down_revision = "0131"
alters = ("model",)
runs_from = "0100"
version = "1.1.0"

_STATEMENTS = """
ALTER TABLE model ALTER fallback SET DEFAULT '["unreachable", "429", "5xx", "credit"]';
UPDATE model SET fallback = '["unreachable", "429", "5xx", "credit"]', updated_at = now()
 WHERE fallback @> '["unreachable", "429", "5xx"]' AND NOT fallback @> '["credit"]';
"""


def upgrade() -> None:
    """Set the default, also of models that have had all causes so far."""
    op.execute(_STATEMENTS)
