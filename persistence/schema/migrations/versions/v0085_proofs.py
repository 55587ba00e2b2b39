"""Up to where the rows of accounts were proven, so that what must hold of them is asked of what is behind."""

from pathlib import Path

from alembic import op

revision = "0085"
down_revision = "0084"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table and views: what runs already goes on without them."""
    sql = (Path(__file__).parents[1] / "v0085" / "proofs.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
