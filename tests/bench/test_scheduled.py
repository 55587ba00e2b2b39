"""The bench of scheduled invoices on a few organizations: two keeper processes make each once."""

from __future__ import annotations

from decimal import Decimal

from persistence.schema import migrate
from tests.bench.scheduled import broken, final, measure, report, summary
from tests.persistence.scenario import rows_of


def test_some_organizations_are_invoiced_by_one_keeper_and_by_two(database: str, valkey: str) -> None:
    migrate.upgrade(database)
    turns = measure(database, valkey, 5, 2)
    assert [(turn.keepers, turn.organizations) for turn in turns] == [(1, 5), (2, 5)]
    assert (final(database), broken(database)) == (10, 0)
    # 29.00 a month, 1,000 units at 0.001, and a fifth of both.
    assert rows_of(database, "SELECT DISTINCT total_amount FROM invoice") == [(Decimal(36),)]
    said = report(5, summary(turns))
    assert all(f"| {name} |" in said for name in ("one keeper", "two keepers"))
