"""The bench of invoices on a small month: it runs, and bills what it filled in."""

from __future__ import annotations

from persistence.schema import migrate
from tests.bench.invoicing import measure
from tests.persistence.scenario import rows_of


async def test_a_small_month_is_invoiced(database: str) -> None:
    migrate.upgrade(database)
    seconds = await measure(database, 900)
    assert seconds.keys() == {"compare", "draft", "finalize", "pdf", "invoice", "usage_csv"}
    billed = "SELECT kind, quantity::bigint FROM invoice_line ORDER BY position"
    # 30 days of 30 units; the pro rata of nothing is the whole month.
    assert rows_of(database, billed) == [
        ("subscription", 1),
        ("credits_consumed", 600),
        ("usage", 900),
        ("tax", 1),
    ]
