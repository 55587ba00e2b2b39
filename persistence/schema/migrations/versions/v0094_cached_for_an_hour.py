"""Roll-ups of calls tell entries of a cache that are kept for an hour: they cost more than others."""

from alembic import op

revision = "0094"
down_revision = "0093"
runs_from = "0069"
alters = ("usage_rollup",)
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column with a default: what runs already, and what is added up, does not tell them apart."""
    op.get_bind().exec_driver_sql(
        "ALTER TABLE usage_rollup ADD COLUMN cache_write_1h BIGINT DEFAULT 0 NOT NULL;"
    )
