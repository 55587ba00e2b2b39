"""What of an invoice is paid: where it stands, and what may be paid and given back."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.allocation import Allocation, Allocator, CreditGrant, Outflow, settled
from gateway.core.billing.invoice import BillLine, bill, partial_note, whole_note
from gateway.core.billing.outlook import looked_at_since, outlook
from gateway.core.billing.payments import OpenInvoice, due_on, require_payable, require_returnable
from gateway.errors import Conflict, Unprocessable
from tests.core.billing.test_invoice import totals, worked_example

DUE = date(2026, 5, 14)
CENTS = st.integers(-100_000, 100_000).map(lambda cents: Decimal(cents).scaleb(-2))


@pytest.mark.parametrize(
    ("rest", "given_up", "today", "status"),
    [
        ("10.00", False, DUE, "open"),
        ("0.01", False, DUE + timedelta(days=1), "overdue"),
        ("0.00", False, DUE + timedelta(days=1), "paid"),
        ("-5.00", True, DUE, "paid"),
        ("10.00", True, DUE, "uncollectible"),
        ("10.00", True, DUE + timedelta(days=400), "uncollectible"),
    ],
)
def test_where_an_invoice_stands(rest: str, *, given_up: bool, today: date, status: str) -> None:
    assert OpenInvoice(Decimal(rest), DUE, given_up=given_up).status(today) == status


def test_an_invoice_without_a_day_is_never_overdue() -> None:
    assert OpenInvoice(Decimal(1)).status(date.max) == "open"


@given(CENTS, st.booleans(), st.integers(-500, 500))
def test_exactly_what_is_left_to_pay_is_not_paid(rest: Decimal, given_up: bool, days: int) -> None:  # drawn
    status = OpenInvoice(rest, DUE, given_up=given_up).status(DUE + timedelta(days=days))
    assert (status == "paid") is (rest <= 0)
    assert (status == "overdue") is (rest > 0 and not given_up and days > 0)
    assert (status == "uncollectible") is (rest > 0 and given_up)


def test_no_days_are_the_day_itself() -> None:
    assert (due_on(DUE, 0), due_on(DUE, 14)) == (DUE, date(2026, 5, 28))


@pytest.mark.parametrize(
    ("amount", "currency", "said"),
    [
        ("0", "EUR", "must be above 0"),
        ("-1", "EUR", "must be above 0"),
        ("1.005", "EUR", "has more decimals than EUR"),
        ("1.5", "JPY", "has more decimals than JPY"),
        ("10.01", "EUR", "EUR 10.00 is left to pay, not 10.01"),
        ("1E30", "EUR", "EUR 10.00 is left to pay, not 1000000000000000000000000000000"),
    ],
)
def test_what_cannot_be_paid_names_the_amount(amount: str, currency: str, said: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        require_payable(Decimal(amount), Decimal(10), currency)
    assert refused.value.errors == (("amount", said),)


@given(CENTS, CENTS)
def test_no_more_is_taken_than_is_left(amount: Decimal, rest: Decimal) -> None:
    for require in (require_payable, require_returnable):
        if 0 < amount <= rest:
            require(amount, rest, "EUR")
        else:
            with pytest.raises(Unprocessable):
                require(amount, rest, "EUR")


# --- credit note ------------------------------------------------------------------------
# What is given back of an invoice: all, or parts that never come to more than was billed.


MADE = bill(worked_example())
TOTAL = sum(totals(MADE), Decimal(0))
LINES = dict(enumerate(MADE.lines, 1))
INFORMATION, TAX = 5, 8


def test_a_whole_note_gives_back_line_by_line() -> None:
    note = whole_note(LINES, {})
    assert sum((line.amount for line in note.values()), TOTAL) == 0
    assert "credits_consumed" not in {line.kind for line in note.values()}
    assert [line.quantity for line in note.values()] == [
        -line.quantity for line in LINES.values() if line.kind != "credits_consumed"
    ]


def test_part_of_a_line_comes_with_its_tax_and_the_rest_follows() -> None:
    note = partial_note(LINES, {}, {4: Decimal("30.00"), 1: None}, "USD")
    assert {position: str(line.amount) for position, line in note.items()} == {
        4: "-30.00", 1: "-14.50", TAX: "-8.90",
    }  # fmt: skip
    assert (note[4].quantity, note[4].unit_price) == (-1, Decimal("30.00"))
    assert note[1].quantity == -15
    given_back = {position: -line.amount for position, line in note.items()}
    rest = whole_note(LINES, given_back)
    assert 1 not in rest
    assert str(rest[4].amount) == "-50.00"
    total = sum((line.amount for line in (*note.values(), *rest.values())), TOTAL)
    assert total == 0
    everything = {position: line.amount for position, line in LINES.items()}
    with pytest.raises(Conflict):
        whole_note(LINES, everything)


@pytest.mark.parametrize(
    ("position", "amount"),
    [(4, "80.01"), (4, "0"), (4, "-1"), (4, "0.001"), (INFORMATION, None), (TAX, "1"), (99, None)],
)
def test_what_cannot_be_given_back_is_named(position: int, amount: str | None) -> None:
    asked = {position: None if amount is None else Decimal(amount)}
    with pytest.raises(Unprocessable) as refused:
        partial_note(LINES, {}, asked, "USD")
    assert [name for name, _ in refused.value.errors] == [f"lines.{position}"]


@given(parts=st.lists(st.integers(1, 9_000), min_size=1, max_size=8))
def test_parts_come_to_the_whole_whatever_they_are(parts: list[int]) -> None:
    back: dict[int, Decimal] = {}

    def keep(note: dict[int, BillLine]) -> None:
        for position, line in note.items():
            back[position] = back.get(position, Decimal(0)) - line.amount

    for cents in parts:
        asked = Decimal(cents) / 100
        if asked <= LINES[4].amount - back.get(4, Decimal(0)):
            keep(partial_note(LINES, back, {4: asked}, "USD"))
        assert all(back[position] <= LINES[position].amount for position in back)
    keep(whole_note(LINES, back))
    assert sum(back.values()) == TOTAL


# --- allocation -------------------------------------------------------------------------
# Credits are allocated to the last one, in the stated order, from no grant more than it has.


DAY_MS = 86_400_000


def amounts(found: list[Allocation]) -> list[tuple[int | None, int]]:
    return [(each.grant_id, each.amount) for each in found]


def test_priority_then_expiry_then_promotional_then_id() -> None:
    allocator = Allocator()
    for grant in (
        CreditGrant(1, 10),
        CreditGrant(2, 10, promotional=True),
        CreditGrant(3, 10, expires_ms=9 * DAY_MS),
        CreditGrant(4, 10, priority=200, expires_ms=1 * DAY_MS),
        CreditGrant(5, 10, expires_ms=8 * DAY_MS),
        CreditGrant(6, 10, promotional=True),
    ):
        allocator.add_grant(grant)
    found = allocator.pay(Outflow(1, 0, 60))
    assert [grant for grant, _ in amounts(found)] == [5, 3, 2, 6, 1, 4]


def test_an_expired_grant_no_longer_pays_and_keeps_its_rest() -> None:
    allocator = Allocator()
    allocator.add_grant(CreditGrant(1, 10, expires_ms=100))
    allocator.add_grant(CreditGrant(2, 10))
    assert amounts(allocator.pay(Outflow(1, 99, 4))) == [(1, 4)]
    assert amounts(allocator.pay(Outflow(2, 100, 4))) == [(2, 4)]
    assert allocator.left_of(1) == 6
    assert amounts(allocator.pay(Outflow(3, 101, 6, grant_id=1))) == [(1, 6)]
    assert (allocator.left_of(1), allocator.left_of(2)) == (0, 6)


def test_debt_is_covered_by_the_next_grant() -> None:
    allocator = Allocator()
    assert amounts(allocator.pay(Outflow(1, 0, 30))) == [(None, 30)]
    assert amounts(allocator.add_grant(CreditGrant(1, 20))) == [(None, -20), (1, 20)]
    assert allocator.left_of(1) == 0
    assert amounts(allocator.add_grant(CreditGrant(2, 50))) == [(None, -10), (2, 10)]
    assert allocator.left_of(2) == 40
    allocator = Allocator.resume((), [(1, 10), (2, 10)])
    covered = allocator.add_grant(CreditGrant(1, 15), first={2})
    assert [(one.seq, one.amount) for one in covered] == [(2, -10), (2, 10), (1, -5), (1, 5)]


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("grant"), st.integers(1, 200), st.integers(0, 3),
            st.none() | st.integers(1, 400), st.booleans(),
        ),
        st.tuples(st.just("use"), st.integers(1, 150), st.integers(0, 40)),
        st.tuples(st.just("expire")),
    ),
    max_size=40,
)  # fmt: skip


@given(events=EVENTS, cuts=st.sets(st.integers(0, 40)))
def test_every_credit_is_allocated_once_and_resuming_changes_nothing(
    events: list[tuple[object, ...]], cuts: set[int]
) -> None:
    """One run, and one that is put down and taken up again at every cut, agree on everything."""
    whole, parts = Allocator(), Allocator()
    grants: dict[int, CreditGrant] = {}
    found: list[Allocation] = []
    again: list[Allocation] = []
    outflows: dict[int, int] = {}
    at = balance = 0
    for seq, event in enumerate(events):
        if seq in cuts:
            sums = settled(again)
            debts = [(s, n) for (s, grant), n in sums.items() if grant is None]
            parts = Allocator.resume([(g, parts.left_of(g.id)) for g in grants.values()], debts)
        match event:
            case ("grant", int(amount), int(priority), until, bool(promotional)):
                expires = at + until if isinstance(until, int) else None
                grant = grants[seq] = CreditGrant(seq, amount, priority, expires, promotional)
                found += whole.add_grant(grant)
                again += parts.add_grant(grant)
                balance += amount
                continue
            case ("use", int(amount), int(later)):
                at += later
                outflow = Outflow(seq, at, amount)
            case _:
                due = [g for g in grants.values() if g.until_ms <= at and whole.left_of(g.id)]
                if not due:
                    continue
                outflow = Outflow(seq, at, whole.left_of(due[0].id), grant_id=due[0].id)
        outflows[seq] = outflow.amount
        balance -= outflow.amount
        found += whole.pay(outflow)
        again += parts.pay(outflow)
    sums = settled(found)
    assert sums == settled(again)
    assert all(amount > 0 for amount in sums.values())
    for seq, amount in outflows.items():
        assert sum(n for (s, _), n in sums.items() if s == seq) == amount
    for grant in grants.values():
        given_ = sum(n for (_, g), n in sums.items() if g == grant.id)
        assert given_ + whole.left_of(grant.id) == grant.amount
    owed = sum(n for (_, grant), n in sums.items() if grant is None)
    assert balance == sum(whole.rests.values()) - owed


# --- outlook ----------------------------------------------------------------------------
# Where spend leads to: the month so far, and the pace of a week for what is left of it.


def days(first: date, *amounts: str) -> dict[date, Decimal]:
    return {first + timedelta(days=n): Decimal(amount) for n, amount in enumerate(amounts)}


def test_the_same_every_day_goes_on_like_that() -> None:
    spent = days(date(2026, 4, 1), *["24"] * 9, "12")
    found = outlook(spent, datetime(2026, 4, 10, 12, tzinfo=UTC))
    assert found == (Decimal(12), Decimal(228), Decimal(720))


def test_on_the_first_of_a_month_the_week_before_says_the_pace() -> None:
    spent = days(date(2026, 3, 25), *["10"] * 7)
    found = outlook(spent, datetime(2026, 4, 1, tzinfo=UTC))
    assert (found.today, found.month, found.forecast) == (0, 0, Decimal(300))


def test_a_burst_long_ago_says_nothing_of_the_rest() -> None:
    spent = {date(2026, 4, 1): Decimal(900)} | days(date(2026, 4, 14), *["1"] * 7)
    found = outlook(spent, datetime(2026, 4, 21, tzinfo=UTC))
    assert found.forecast == 907 + 10


def test_who_began_today_has_the_pace_of_today() -> None:
    found = outlook({date(2026, 4, 30): Decimal("0.000000001")}, datetime(2026, 4, 30, 6, tzinfo=UTC))
    assert found == (Decimal("0.000000001"), Decimal("0.000000001"), Decimal("0.000000004"))


@pytest.mark.parametrize("spent", [{}, {date(2026, 4, 5): Decimal(0)}])
def test_nothing_leads_to_nothing(spent: dict[date, Decimal]) -> None:
    assert outlook(spent, datetime(2026, 4, 30, 23, 59, tzinfo=UTC)) == (0, 0, 0)


def test_what_stopped_before_the_week_is_over() -> None:
    spent = {date(2026, 12, 2): Decimal(5)}
    assert outlook(spent, datetime(2026, 12, 31, tzinfo=UTC)) == (0, 5, 5)


def test_a_month_and_a_week_are_looked_at() -> None:
    assert looked_at_since(datetime(2026, 4, 3, 5, tzinfo=UTC)) == datetime(2026, 3, 27, tzinfo=UTC)
    assert looked_at_since(datetime(2026, 4, 30, 5, tzinfo=UTC)) == datetime(2026, 4, 1, tzinfo=UTC)
