"""Money as currencies round it, tiers however units are cut, credits by token in integers."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.money import (
    IN_MONEY,
    NO_PRICING,
    CostMarkup,
    CreditRates,
    PriceTier,
    graduated,
    read_pricing,
    rounded,
    spend_micro,
    times,
)
from gateway.core.model import INTEGER_MAX

UNITS = st.integers(0, 10_000_000)
PRICE = st.decimals("0", "1000", places=9)


@st.composite
def tiers(draw: st.DrawFn) -> list[PriceTier]:
    ends = sorted(draw(st.sets(st.integers(1, 1_000_000), max_size=5)))
    return [PriceTier(end, draw(PRICE)) for end in (*ends, None)]


@pytest.mark.parametrize(
    ("amount", "currency", "paid"),
    [
        ("7.037034", "USD", "7.04"),
        ("37.208", "EUR", "37.21"),
        ("0.005", "USD", "0.01"),
        ("-0.005", "USD", "-0.01"),
        ("1.4999999999999999999999999", "JPY", "1"),
        ("1.5", "JPY", "2"),
        ("2.5", "KRW", "3"),
        ("1.0005", "KWD", "1.001"),
        ("90071992547409.9149", "USD", "90071992547409.91"),
    ],
)
def test_money_is_rounded_half_up_to_the_minor_unit(amount: str, currency: str, paid: str) -> None:
    assert str(rounded(Decimal(amount), currency)) == paid


def test_a_product_is_exact() -> None:
    assert times(INTEGER_MAX, Decimal("0.000000000001")) == Decimal("9007.199254740991")


def test_tiers_are_graduated() -> None:
    two = [PriceTier(10_000, Decimal("0.0010")), PriceTier(None, Decimal("0.0008"))]
    assert [(part.tier, part.quantity) for part in graduated(two, 0, 41_250)] == [(0, 10_000), (1, 31_250)]
    assert [(part.tier, part.quantity) for part in graduated(two, 9_999, 2)] == [(0, 1), (1, 1)]
    assert graduated(two, 41_250, 0) == []


@given(tiers=tiers(), already=UNITS, cuts=st.lists(UNITS, max_size=6))
def test_cutting_units_into_requests_changes_no_tier(
    tiers: list[PriceTier], already: int, cuts: list[int]
) -> None:
    def by_tier(pieces: list[tuple[int, int]]) -> dict[int, int]:
        found: dict[int, int] = {}
        for before, units in pieces:
            for part in graduated(tiers, before, units):
                found[part.tier] = found.get(part.tier, 0) + part.quantity
        return found

    pieces, at = [], already
    for units in cuts:
        pieces.append((at, units))
        at += units
    assert by_tier(pieces) == by_tier([(already, at - already)])
    assert sum(spend_micro(tiers, before, units) for before, units in pieces) == spend_micro(
        tiers, already, at - already
    )


@given(tiers=tiers(), units=UNITS, more=UNITS)
def test_more_units_never_cost_less(tiers: list[PriceTier], units: int, more: int) -> None:
    assert spend_micro(tiers, units, more) >= 0
    exact = sum(
        (Fraction(part.unit_price) * part.quantity for part in graduated(tiers, 0, units)), Fraction(0)
    )
    assert 0 <= spend_micro(tiers, 0, units) - exact * 1_000_000 < 1


def test_pricing_is_read_as_it_is_stored() -> None:
    stored = {"tiers": [{"up_to": 10, "unit_price": "0.50"}, {"up_to": None, "unit_price": "0.1"}]}
    assert read_pricing(stored).tiers == (PriceTier(10, Decimal("0.50")), PriceTier(None, Decimal("0.1")))
    assert read_pricing({"per_million": {"*": {"output": 5}}}).per_million == {"*": CreditRates(output=5)}
    assert read_pricing(None) == read_pricing({})
    by_kind = {"input": 3, "cache_read": 1, "cache_write": 4, "audio_output": 9}
    read = read_pricing({"per_million": {"gpt*": by_kind}, "markup": "1.25"})
    assert read.per_million == {"gpt*": CreditRates(3, cache_read=1, cache_write=4, audio_output=9)}
    assert read.markup == Decimal("1.25")
    assert read_pricing({"at_cost": {}}).at_cost == CostMarkup(Decimal(1))
    at_cost = read_pricing({"at_cost": {"markup": "1.2", "credits_per_unit": "100"}}).at_cost
    assert at_cost == CostMarkup(Decimal("1.2"), Decimal(100))
    assert at_cost.factor == (120, 1)


def test_units_at_cost_are_billionths_of_the_currency() -> None:
    assert read_pricing({"at_cost": {"markup": "1.2"}}).ladder == (PriceTier(None, Decimal("0.000000001")),)
    assert spend_micro(IN_MONEY, 0, 424_800_000) == 424_800
    assert NO_PRICING.ladder == ()
