"""The first schema: tables, what the database refuses, invariants, search, and what is always there."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PARTS = ("tables", "guards", "invariants", "search", "seed")


def upgrade() -> None:
    """Run the scripts of this version, in order."""
    folder = Path(__file__).parents[1] / "v0001"
    for part in PARTS:
        sql = (folder / f"{part}.sql").read_text(encoding="utf-8")
        op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
