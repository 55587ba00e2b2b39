"""Each ledger is kept as long as it is wanted: what must hold of rows holds with one of them gone."""

from pathlib import Path

from alembic import op

revision = "0080"
down_revision = "0079"
runs_from = "0069"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Compare the roll-up with each ledger since its own rows are here."""
    sql = (Path(__file__).parents[1] / "v0080" / "rollup.sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
