"""Money in Stripe's units: the same amount there and back, or none at all."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.money import MINOR_DIGITS
from gateway.features.stripe.service import Unspeakable, from_stripe, to_stripe


@pytest.mark.parametrize(
    ("amount", "currency", "number"),
    [
        ("120.00", "USD", 12_000),
        ("-0.01", "EUR", -1),
        ("1500", "JPY", 1_500),
        ("1500", "ISK", 150_000),
        ("1500", "UGX", 150_000),
        ("12.340", "KWD", 12_340),
        ("7", "MGA", 7),
        ("0", "BHD", 0),
    ],
)
def test_amount_converts_to_the_minor_unit_of_stripe_and_back(
    amount: str, currency: str, number: int
) -> None:
    assert to_stripe(Decimal(amount), currency) == number
    assert from_stripe(number, currency) == Decimal(amount)


@pytest.mark.parametrize(
    ("amount", "currency"),
    [("0.001", "USD"), ("1.5", "JPY"), ("12.345", "KWD"), ("10.40", "MGA"), ("0.5", "ISK")],
)
def test_amount_below_the_minor_unit_of_stripe_is_refused_rather_than_rounded(
    amount: str, currency: str
) -> None:
    with pytest.raises(Unspeakable, match=f"{currency} {Decimal(amount).normalize():f}"):
        to_stripe(Decimal(amount), currency)


@given(st.sampled_from(sorted(MINOR_DIGITS)), st.integers(-(10**12), 10**12))
def test_random_amount_survives_conversion_to_the_minor_unit_of_stripe_and_back(
    currency: str, number: int
) -> None:
    amount = Decimal(number).scaleb(-MINOR_DIGITS[currency])
    try:
        there = to_stripe(amount, currency)
    except Unspeakable:
        return
    assert Fraction(from_stripe(there, currency)) == Fraction(number, 10 ** MINOR_DIGITS[currency])
