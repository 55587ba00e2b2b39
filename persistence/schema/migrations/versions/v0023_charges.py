"""Charges: the ledger of money under every invoice, and what was invoiced before as such."""

from pathlib import Path

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, its guards and its proofs; then write what invoices in force have billed."""
    for name in ("charges", "adopted", "invariants"):
        sql = (Path(__file__).parents[1] / "v0023" / f"{name}.sql").read_text(encoding="utf-8")
        op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
