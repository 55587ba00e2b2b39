"""Sums of usage: Python counts each new call as SQL counts its stored row."""

from __future__ import annotations

from itertools import product

from msgspec.structs import replace

from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.usage_sums import SUMS, USAGE_SUMS
from gateway.core.model import INTEGER_MAX
from persistence.ledger.writer import LedgerWriter
from tests.persistence.ledger.test_calls import FACTS, opened
from tests.persistence.scenario import batch_of, broken, rows_of

# Counts that may not be stored become 0; what has tokens and no cost has no price.
COUNTS = ((5, 4, 3, 2, 7, 6, 1, 0, 0, 0), (-1, INTEGER_MAX, 0, 0, INTEGER_MAX + 1, 0, 0, 0, 0, 0))
COSTS = (None, 0, 354_000_001)


def calls() -> list[CallFacts]:
    """Calls of all kinds, each of a model of its own."""
    drawn = product(COUNTS, COSTS, (0, 21), ("", "web_search"), (False, True))
    return [
        replace(
            FACTS, model=f"m{number}", counts=counts, cost=cost, total=total, unpriced=unpriced,
            estimated=estimated, units=number,
        )
        for number, (counts, cost, total, unpriced, estimated) in enumerate(drawn)
    ]  # fmt: skip


async def test_sums_of_a_new_call_equal_the_sums_of_its_row(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    for facts in calls():
        account.consume(facts.total, credits_=3 if facts.estimated else None, metadata=write_facts(facts))
    await writer.write(batch_of(account))
    rows = ", ".join(SUMS)
    of_calls = ", ".join(f"({usage_sum.sql})::bigint" for usage_sum in USAGE_SUMS)
    stored = rows_of(migrated, f"SELECT model, {of_calls} FROM call ORDER BY model")
    summed = rows_of(migrated, f"SELECT model, {rows} FROM usage_rollup WHERE span = 'hour' ORDER BY model")
    assert len(stored) == 48
    assert summed == stored
    assert await broken(migrated) == []
