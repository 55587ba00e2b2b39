"""Allocations kept in pages: every use paid by the right additions, expiry takes exactly the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.billing.allocation import ExpiredGrant
from persistence import engine
from persistence.billing.credit_balances import Allocations
from persistence.billing.invoice_boxes import Cover, boxes
from persistence.ledger.writer import LedgerWriter
from tests.in_turn import in_turn
from tests.persistence.credits import give, post_expiries
from tests.persistence.migrated import empty
from tests.persistence.scenario import Account, batch_of, broken, rows_of, settle_in
from tests.search import examples

HOUR_MS = 3_600_000
ALLOCATED = """
SELECT seq, credit_addition_id, amount FROM credit_allocation ORDER BY seq, credit_addition_id NULLS LAST"""
POSTED = "SELECT kind, credit_addition_id, amount FROM credit_posting ORDER BY seq"
LEFT = """
SELECT (SELECT coalesce(sum(credits_added - spent), 0) FROM credit_addition WHERE credits_added > 0),
       (SELECT coalesce(sum(amount), 0) FROM credit_allocation WHERE credit_addition_id IS NULL)"""


@pytest.fixture
async def kept(migrated: str) -> AsyncIterator[Allocations]:
    pool = engine.create(migrated)
    yield Allocations(pool)
    await pool.dispose()


def store(url: str, *accounts: Account) -> None:
    writer = LedgerWriter(url)
    try:
        report = writer.write_now(batch_of(*accounts))
        assert (report.quarantined, report.dead_letters) == ([], 0)
    finally:
        writer.close()


async def allocate(kept: Allocations) -> None:
    for organization_id in await kept.behind(100):
        while not await kept.allocate(organization_id):
            pass


async def test_expiring_promotional_credits_are_used_before_paid_credits(
    migrated: str, kept: Allocations
) -> None:
    [account] = settle_in(migrated, None)
    paid = give(migrated, account, 8_000)
    gift = give(migrated, account, 2_000, category="promotional", expires_ms=account.at_ms + HOUR_MS)
    account.consume(None, credits_=1_500)
    account.consume(None, credits_=1_000)
    account.consume(None, credits_=0)
    store(migrated, account)
    await allocate(kept)
    assert rows_of(migrated, ALLOCATED) == [(3, gift, 1_500), (4, paid, 500), (4, gift, 500)]
    assert await kept.behind(10) == []
    assert await broken(migrated) == []


@in_turn(
    ("known", "ended", "entered"),
    [
        # As it ends, and until a day behind the end of its month, it is of its last instant.
        ("2028-07-31 20:00", "2028-07-31 20:00", "2028-07-31 19:59:59.999999"),
        ("2028-08-01 00:30", "2028-08-01 00:00", "2028-07-31 23:59:59.999999"),
        ("2028-08-01 23:59:59.999999", "2028-07-02 00:00", "2028-07-01 23:59:59.999999"),
        ("2028-08-02 00:00", "2028-08-01 00:00", "2028-08-02 00:00"),
        ("2029-01-01 23:00", "2029-01-01 00:00", "2028-12-31 23:59:59.999999"),
        ("2029-01-02 00:00", "2029-01-01 00:00", "2029-01-02 00:00"),
        ("2029-01-02 00:00", "2029-01-01 00:00:00.000001", "2029-01-01 00:00"),
        ("2028-03-01 12:00", "2028-03-01 00:00", "2028-02-29 23:59:59.999999"),
        # What has not ended is of now.
        ("2028-07-05 12:00", "2028-07-06 00:00", "2028-07-05 12:00"),
    ],
)
@in_turn("zone", ["UTC", "America/New_York", "Pacific/Apia"])
def test_ledger_entry_may_be_dated_in_a_past_month_until_a_day_after_month_end_in_utc(
    migrated: str, zone: str, known: str, ended: str, entered: str
) -> None:
    """Whatever zone a session is in."""
    asked = f"""
SELECT entered_at(k, e) AT TIME ZONE 'UTC' FROM set_config('TimeZone', '{zone}', false),
       (VALUES (timestamp '{known}' AT TIME ZONE 'UTC',
                timestamp '{ended}' AT TIME ZONE 'UTC')) AS v (k, e)"""
    assert rows_of(migrated, asked) == [(datetime.fromisoformat(entered),)]


DRAWN = "SELECT credit_addition_id, kind, day, credits FROM credit_drawdown ORDER BY 1, 2, 3"


async def test_credits_used_in_a_closed_month_are_booked_on_the_day_of_processing(
    migrated: str, kept: Allocations
) -> None:
    """A month that is closed gets nothing more: what comes that late is of the day it is known on."""
    today = datetime.now(UTC)
    [account] = settle_in(migrated, None)
    account.at_ms = int((today - timedelta(days=40)).timestamp() * 1000)
    first = give(migrated, account, 1_000, unit_cost="0.01")
    account.consume(None, credits_=300)
    account.at_ms = int((today - timedelta(minutes=2)).timestamp() * 1000)
    account.consume(None, credits_=50)
    store(migrated, account)
    await allocate(kept)
    recent = (today - timedelta(minutes=2)).date()
    days = {today.date(): 300}
    days[recent] = days.get(recent, 0) + 50
    expected = [(first, "use", day, credits_) for day, credits_ in sorted(days.items())]
    assert rows_of(migrated, DRAWN) == expected
    # Debt leaves with the addition that covers it; a negative addition takes back what others gave.
    account.consume(None, credits_=700)
    second = give(migrated, account, 100)
    give(migrated, account, -20, unit_cost="0.01")
    store(migrated, account)
    await allocate(kept)
    found = rows_of(migrated, "SELECT credit_addition_id, kind, sum(credits) FROM credit_drawdown"
                              " GROUP BY 1, 2 ORDER BY 1, 2")  # fmt: skip
    assert found == [(first, "use", 1_000), (second, "return", 20), (second, "use", 50)]
    assert await broken(migrated) == []


async def test_added_credits_cover_the_oldest_credit_debt_first(migrated: str, kept: Allocations) -> None:
    [account] = settle_in(migrated, None)
    account.consume(None, credits_=30)
    account.consume(None, credits_=10)
    store(migrated, account)
    await allocate(kept)
    assert rows_of(migrated, ALLOCATED) == [(1, None, 30), (2, None, 10)]
    paid = give(migrated, account, 35)
    store(migrated, account)
    await allocate(kept)
    assert rows_of(migrated, ALLOCATED) == [(1, paid, 30), (2, paid, 5), (2, None, 5)]
    assert await broken(migrated) == []


async def test_credit_expiry_removes_exactly_the_credits_unused_at_the_expiry_time(
    migrated: str, kept: Allocations
) -> None:
    [account] = settle_in(migrated, None)
    until = account.at_ms + HOUR_MS
    gift = give(migrated, account, 2_000, category="promotional", expires_ms=until)
    paid = give(migrated, account, 100)
    account.consume(None, credits_=600)
    account.at_ms = until
    account.consume(None, credits_=50)
    store(migrated, account)
    expired = ExpiredGrant(gift, account.organization_id)
    assert await kept.expired(until - 1, 10) == []
    assert await kept.expired(until, 10) == [expired]
    assert not await kept.expire(expired, account.partition, account.credit_seq)
    await allocate(kept)
    assert await kept.expire(expired, account.partition, account.credit_seq)
    assert await kept.expire(expired, account.partition, account.credit_seq)
    assert await kept.expired(until, 10) == []
    assert post_expiries(migrated, account) == 1_400
    store(migrated, account)
    await allocate(kept)
    assert account.balance == 50
    assert rows_of(migrated, ALLOCATED) == [(3, gift, 600), (4, paid, 50), (5, gift, 1_400)]
    assert rows_of(migrated, POSTED)[-1] == ("expiry", gift, -1_400)
    assert await broken(migrated) == []


async def test_expiry_of_fully_spent_credits_removes_no_credits_from_the_balance(
    migrated: str, kept: Allocations
) -> None:
    [account] = settle_in(migrated, None)
    gift = give(migrated, account, 10, expires_ms=account.at_ms + HOUR_MS)
    account.consume(None, credits_=10)
    store(migrated, account)
    await allocate(kept)
    expired = ExpiredGrant(gift, account.organization_id)
    assert await kept.expire(expired, account.partition, account.credit_seq)
    assert await kept.expired(account.at_ms + 2 * HOUR_MS, 10) == []
    assert rows_of(migrated, "SELECT count(*) FROM control_write") == [(0,)]


async def test_credits_not_yet_added_to_the_balance_do_not_expire(migrated: str, kept: Allocations) -> None:
    [account] = settle_in(migrated, None)
    give(migrated, account, 10, expires_ms=account.at_ms + HOUR_MS)
    assert await kept.expired(account.at_ms + 2 * HOUR_MS, 10) == []


STEP = st.one_of(
    st.tuples(st.just("use"), st.integers(0, 120)),
    st.tuples(
        st.just("give"), st.integers(1, 200), st.integers(0, 2), st.none() | st.integers(1, 5), st.booleans()
    ),
    st.tuples(st.just("back"), st.integers(1, 50)),
    st.tuples(st.just("wait"), st.integers(1, 4)),
    st.tuples(st.just("flush")),
)


@given(history=st.lists(STEP, max_size=25), page=st.integers(1, 6))
@settings(max_examples=examples(25))
async def test_credits_left_of_all_purchases_equal_the_balance_after_a_random_history(
    shared: str, history: list[tuple[object, ...]], page: int
) -> None:
    """Whatever the pages: allocations prove themselves, and the balance is what additions have left."""
    empty(shared)
    [account] = settle_in(shared, None)
    pool = engine.create(shared)
    kept = Allocations(pool, movements_a_page=page)

    async def catch_up() -> None:
        store(shared, account)
        await allocate(kept)
        for expired in await kept.expired(account.at_ms, 100):
            assert await kept.expire(expired, account.partition, account.credit_seq)
        post_expiries(shared, account)
        store(shared, account)
        await allocate(kept)
        assert await broken(shared) == []

    for step in history:
        match step:
            case ("use", int(amount)):
                account.consume(None, credits_=amount)
            case ("give", int(amount), int(priority), hours, bool(promotional)):
                give(
                    shared, account, amount, priority=priority,
                    expires_ms=account.at_ms + hours * HOUR_MS if isinstance(hours, int) else None,
                    category="promotional" if promotional else "paid",
                )  # fmt: skip
            case ("back", int(amount)):
                give(shared, account, -amount, category="correction")
            case ("wait", int(hours)):
                await catch_up()
                account.at_ms += hours * HOUR_MS
            case _:
                await catch_up()
    account.at_ms += 10 * HOUR_MS
    await catch_up()
    [(left, debt)] = rows_of(shared, LEFT)
    assert account.balance == int(str(left)) - int(str(debt))
    expired = "SELECT count(*) FROM credit_addition WHERE expires_at IS NOT NULL AND credits_added > spent"
    assert rows_of(shared, expired) == [(0,)]
    await pool.dispose()


# --- coverage ---------------------------------------------------------------------------
# Each movement is behind one final invoice at most: random histories against a movement by movement walk.


FIRST = datetime(2026, 4, 1, tzinfo=UTC)
DAYS, SEQS = 6, 12


def day(number: int) -> datetime:
    return FIRST + timedelta(days=number)


@given(
    st.lists(
        st.tuples(
            st.integers(0, DAYS - 1), st.integers(1, DAYS), st.integers(0, 3),
            st.none() | st.integers(1, 8),
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_final_invoice_covers_exactly_the_movements_left_open_by_earlier_invoices(
    drawn: list[tuple[int, int, int, int | None]],
) -> None:
    covers, upto = [], 0
    for number, (since, days, more, voided) in enumerate(drawn):
        upto += more
        final = day(100 + 2 * number)
        void = None if voided is None else final + timedelta(days=2 * voided - 1)
        covers.append(Cover(number, day(since), day(min(DAYS, since + days)), upto, final, void))
    for wanted in covers:
        before = [each for each in covers if each.invoice_id < wanted.invoice_id]
        found = boxes(before, wanted)
        for at in range(DAYS):
            for seq in range(1, SEQS):
                inside = [b for b in found if b.since <= day(at) < b.until and b.after < seq <= b.upto]
                assert len(inside) == (owner(covers, wanted, at, seq) == wanted.invoice_id)


def owner(covers: list[Cover], until: Cover, at: int, seq: int) -> int | None:
    """Whose one movement is right after an invoice became final, told moment by moment."""
    has: int | None = None
    moments = sorted({m for c in covers for m in (c.finalized_at, c.voided_at) if m is not None})
    for moment in moments:
        for cover in covers:
            if cover.voided_at == moment and has == cover.invoice_id:
                has = None
        for cover in covers:
            reaches = cover.since <= day(at) < cover.until and seq <= cover.upto
            if cover.finalized_at == moment and reaches and has is None:
                has = cover.invoice_id
        if moment == until.finalized_at:
            break
    return has
