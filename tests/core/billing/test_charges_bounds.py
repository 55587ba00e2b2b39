"""What is taken in can be billed: products of what people say, and sums of one invoice, have a maximum."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.charges import (
    INVOICE_MAX,
    INVOICE_UNITS_MAX,
    PRODUCT_MAX,
    PURCHASE,
    SupplyCharge,
    left_out,
    split_at_maxima,
    too_dear,
    too_many,
)
from gateway.core.billing.subscription import midnight

PRICES = st.decimals(0, 999_999_999_999, places=9)
QUANTITIES = st.integers(-(2**53 - 1), 2**53 - 1)
APRIL = date(2026, 4, 1)


def charge(amount: Decimal, quantity: Decimal = Decimal(1), number: int = 0) -> SupplyCharge:
    here = (midnight(APRIL), midnight(date(2026, 4, 2)))
    return SupplyCharge(PURCHASE, *here, quantity, abs(amount), amount, "credit_addition", 1, id=number)


def said(why: str) -> Fraction:
    """The largest number that a refusal says is right."""
    return Fraction(why.removeprefix("must be at most ").partition(" ")[0])


@given(quantity=QUANTITIES, price=PRICES, most=st.sampled_from([PRODUCT_MAX, 10**10, 10**15]))
def test_what_is_said_to_be_right_is_right_and_no_less_would_do(
    quantity: int, price: Decimal, most: int
) -> None:
    fits = abs(quantity) * Fraction(price) <= most
    many, dear = too_many(quantity, price, most), too_dear(price, quantity, most)
    assert (many is None) == (dear is None) == fits
    if many is not None and dear is not None:
        right = said(many)
        assert right * Fraction(price) <= most < (right + 1) * Fraction(price)
        right = said(dear)
        step = Fraction(1, 10**9)
        assert right * abs(quantity) <= most < (right + step) * abs(quantity)


def test_what_costs_nothing_has_no_bound() -> None:
    assert too_many(2**53 - 1, None) is None
    assert too_many(2**53 - 1, Decimal(0)) is None
    assert too_dear(None, 2**53 - 1) is None
    assert too_dear(Decimal(10**11), 0) is None


@given(
    st.lists(
        st.tuples(st.decimals(-(10**16), 10**16, places=9), st.integers(-(10**18), 10**18)),
        max_size=12,
    )
)
def test_an_invoice_bears_what_there_is_room_for_and_leaves_the_rest(rows: list[tuple[Decimal, int]]) -> None:
    every = [charge(amount, Decimal(many), at) for at, (amount, many) in enumerate(rows, 1)]
    taken, left = split_at_maxima(every)
    assert sorted([*taken, *left], key=lambda each: each.id) == every
    for is_back in (False, True):
        some = [each for each in taken if (each.amount < 0) == is_back]
        assert sum(abs(Fraction(each.amount)) for each in some) <= INVOICE_MAX
        assert sum(abs(Fraction(each.quantity)) for each in some) <= INVOICE_UNITS_MAX
    # Each that is left has no room beside those before it.
    for each in left:
        before = [one for one in taken if one.id < each.id and (one.amount < 0) == (each.amount < 0)]
        money = sum(abs(Fraction(one.amount)) for one in [*before, each])
        units = sum(abs(Fraction(one.quantity)) for one in [*before, each])
        assert money > INVOICE_MAX or units > INVOICE_UNITS_MAX


@pytest.mark.parametrize(
    ("amounts", "words"),
    [
        ([], ""),
        (["1e23"], "Not on this invoice: charge 1, 100000000000000000000000 USD in all."),
        (["1e23", "0.5"], "2 charges, the first of them charge 1, 100000000000000000000000.5 USD in all."),
    ],
)
def test_what_is_left_is_said_to_the_last_digit(amounts: list[str], words: str) -> None:
    left = [charge(Decimal(each), number=at) for at, each in enumerate(amounts, 1)]
    told = left_out(left, "USD")
    assert words in told
    assert bool(told) == bool(amounts)
