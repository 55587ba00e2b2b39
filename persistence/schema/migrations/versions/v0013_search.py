"""Indexes for what people look for: keys by how they begin, users by what callers call them."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the indexes; the operators are those of LIKE, whatever the database's collation is."""
    op.execute("CREATE INDEX api_key_prefix_idx ON api_key (prefix text_pattern_ops)")
    op.execute("CREATE INDEX app_user_external_id_idx ON app_user (external_id)")
