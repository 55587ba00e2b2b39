"""No sum stops a flush: one beyond its column is the largest it holds, and everybody's rows are stored."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.outbox import CallFacts, EventKind, corrected, write_facts
from gateway.core.accounts.usage import SPANS
from gateway.core.billing.money import IN_MONEY
from gateway.core.model import INTEGER_MAX
from persistence.ledger.statements import SUM_MAX, added, bounded
from persistence.ledger.writer import LedgerWriter
from tests.persistence.ledger.test_calls import rollup_in
from tests.persistence.scenario import Account, batch_of, broken, rows_of, settle_in

DEAR = CallFacts(
    model="m", status=200, counts=(5, 0, 0, 0, 2, 0, 0, 0, 0, 0), total=7, cost=SUM_MAX, currency="VND"
)
EDGES = (0, 1, INTEGER_MAX, SUM_MAX // 2, SUM_MAX // 2 + 1, SUM_MAX - 1, SUM_MAX)
sums = st.one_of(
    st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]), st.integers(-SUM_MAX, SUM_MAX)
)


def two(url: str) -> tuple[Account, Account]:
    """One that pays with credits and in money of a small unit, and one that has nothing to do with it."""
    large, small = settle_in(url, None, 10**9)
    large.tiers = IN_MONEY
    for account in (large, small):
        account.reset()
        account.credit(INTEGER_MAX)
    return large, small


@pytest.mark.parametrize("batches", [1, 2])
async def test_two_largest_uses_stop_nobodys_rows(migrated: str, writer: LedgerWriter, batches: int) -> None:
    large, small = two(migrated)
    for use in range(2):
        large.consume(INTEGER_MAX // 2, credits_=INTEGER_MAX, units=INTEGER_MAX, metadata=write_facts(DEAR))
        small.consume(7, metadata=write_facts(DEAR))
        if use or batches == 2:
            report = await writer.write(batch_of(large, small))
            assert (report.dead_letters, report.quarantined) == (0, [])
    owner = f"tenant_id = {large.tenant_id}"
    assert rows_of(
        migrated, f"SELECT requests, tokens, credits, usage_amount FROM usage_daily WHERE {owner}"
    ) == [(2, INTEGER_MAX - 1, 2 * INTEGER_MAX, 2 * INTEGER_MAX)]
    assert rows_of(migrated, "SELECT quantity FROM usage_tier") == [(2 * INTEGER_MAX,)]
    assert rows_of(migrated, f"SELECT count(*) FROM call WHERE tenant_id = {small.tenant_id}") == [(2,)]
    for span in SPANS:
        assert {row["cost"] for row in rollup_in(migrated, span)} == {SUM_MAX}
    assert await broken(migrated) == []


async def test_a_number_that_no_row_holds_is_still_a_dead_letter(migrated: str, writer: LedgerWriter) -> None:
    large, small = two(migrated)
    large.consume(7, units=INTEGER_MAX + 1)
    small.consume(7)
    report = await writer.write(batch_of(large, small))
    assert (report.dead_letters, report.quarantined) == (1, [])
    assert rows_of(migrated, f"SELECT count(*) FROM call WHERE tenant_id = {small.tenant_id}") == [(1,)]


async def test_what_is_full_stays_full_and_nothing_false_is_said_of_it(
    migrated: str, writer: LedgerWriter
) -> None:
    large, _ = two(migrated)
    request = str(uuid.uuid4())
    large.consume(7, credits_=1, units=1, request_id=request, metadata=b'{"estimated":true,"reclaimed":true}')
    await writer.write(batch_of(large))
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute(
            f"UPDATE usage_daily SET tokens = {SUM_MAX}, credits = {SUM_MAX}, usage_amount = {SUM_MAX}"
        )
        connection.execute(f"UPDATE usage_tier SET quantity = {SUM_MAX}")
    for _ in range(2):
        large.consume(7, credits_=1, units=1, metadata=write_facts(DEAR))
    large.consume(
        2, kind=EventKind.ADJUST, credits_=1, units=-1,
        metadata=corrected(write_facts(DEAR), request, "settled late"),
    )  # fmt: skip
    report = await writer.write(batch_of(large))
    assert report.dead_letters == 0
    assert rows_of(migrated, "SELECT requests, tokens, credits, usage_amount FROM usage_daily") == [
        (3, SUM_MAX, SUM_MAX, SUM_MAX)
    ]
    assert rows_of(migrated, "SELECT quantity FROM usage_tier") == [(SUM_MAX,)]
    said = {one.invariant for one in await broken(migrated)}
    assert said.isdisjoint({"rollup", "usage_adds_up", "invoice"})
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("UPDATE usage_daily SET requests = requests + 1")
        connection.execute("UPDATE usage_rollup SET tokens = tokens + 1 WHERE span = 'day'")
    assert {one.invariant for one in await broken(migrated)} >= {"rollup", "usage_adds_up"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(before=sums, more=sums)
def test_postgresql_adds_as_it_is_said(migrated: str, before: int, more: int) -> None:
    [(found,)] = rows_of(
        migrated,
        f"SELECT {added('n')} FROM (SELECT {before}::bigint AS n) AS u,"
        f" (SELECT {more}::bigint AS n) AS excluded",
    )
    full = next((each for each in (before, more) if abs(each) == SUM_MAX), None)
    assert found == (bounded(before + more) if full is None else full)
