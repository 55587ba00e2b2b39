"""What of an invoice is paid: where it stands, and what may be paid and given back."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.payments import OpenInvoice, due_on, require_payable, require_returnable
from gateway.errors import Unprocessable

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
