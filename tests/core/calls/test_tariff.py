"""Credits of a use: by the unit, once, by token; never past what is counted exactly."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.pricing import ENDLESS, NO_PRICING, Pricing, Tier, TokenPrice, TokenRate
from gateway.core.calls.tariff import (
    check_priced,
    covered,
    credits_of,
    is_by_token,
    misfit,
    price_of,
    rate_of,
)
from gateway.core.model import INTEGER_MAX, Service, Usage
from gateway.errors import ModelNotPriced

PRICES = {"small": TokenPrice(3, 15, 1), "large": TokenPrice(input=3_000_000, output=15_000_000)}
UNIT = Service(1, "images", "consumption", credits=6)
ONCE = Service(2, "setup", "consumption", credits=500, one_time=True)
TOKEN = Service(3, "chat", "consumption", credits=6, pricing=Pricing(per_million=PRICES))


@pytest.mark.parametrize(
    ("service", "by_token"),
    [
        (UNIT, False),
        (ONCE, False),
        (TOKEN, True),
        (Service(4, "x", "pay_per_use", pricing=TOKEN.pricing), False),
        (Service(5, "y", "consumption", one_time=True, pricing=TOKEN.pricing), False),
    ],
)
def test_only_consumption_may_be_priced_by_token(service: Service, by_token: bool) -> None:
    assert is_by_token(service) is by_token


@pytest.mark.parametrize(
    ("service", "model", "units", "tokens", "expected"),
    [
        (UNIT, "small", 4, (10, 10, 0), 24),
        (UNIT, "small", 0, (10, 10, 0), 0),
        (ONCE, "small", 4, (0, 0, 0), 500),
        (TOKEN, "small", 4, (1_000_000, 1_000_000, 0), 18),
        (TOKEN, "small", 1, (1, 0, 0), 1),
        (TOKEN, "small", 1, (1_000_000, 0, 1_000_000), 1),
        (TOKEN, "large", 1, (2, 3, 2), 51),
        (TOKEN, "unpriced", 2, (10, 10, 0), 12),
        (Service(4, "x", "pay_per_use", credits=6), "small", 4, (0, 0, 0), 0),
        (Service(5, "y", "subscription", credits=6), "small", 4, (0, 0, 0), 0),
    ],
)
def test_what_a_use_costs(
    service: Service, model: str, units: int, tokens: tuple[int, int, int], expected: int
) -> None:
    read, written, cached = tokens
    assert credits_of(service, model, Usage(read, written, cached, units=units)) == expected


def test_a_call_that_names_several_models_costs_the_dearest_whichever_is_first() -> None:
    used = Usage(2, 3, 2)
    dear = credits_of(TOKEN, "large", used)
    assert dear > credits_of(TOKEN, "small", used)
    assert credits_of(TOKEN, "small", used, ("large", "small")) == dear
    assert credits_of(TOKEN, "large", used, ("small",)) == dear
    assert rate_of(TOKEN, "small", 5, ("large",)) == rate_of(TOKEN, "large", 5)
    assert price_of(TOKEN, "unpriced", ("large",)) is None


def test_a_call_under_way_is_priced_as_it_will_be() -> None:
    assert rate_of(UNIT, "small", 5) is None
    assert rate_of(TOKEN, "unpriced", 5) is None
    rate = rate_of(TOKEN, "large", 5)
    assert rate == TokenRate(5, 3_000_000, 15_000_000)
    assert [rate.credits(tokens) for tokens in (0, 5, 7)] == [0, 15, 45]
    assert rate.credits(7) == credits_of(TOKEN, "large", Usage(5, 2))


PRICE = st.integers(0, 10**9)


@given(read=st.integers(0, 10**6), prices=st.tuples(PRICE, PRICE), credits_=st.integers(0, 10**9))
def test_credits_cover_as_many_tokens_as_they_pay_and_no_more(
    read: int, prices: tuple[int, int], credits_: int
) -> None:
    rate = TokenRate(read, *prices)
    tokens = rate.covered(credits_)
    assert rate.credits(min(tokens, 10**9)) <= credits_
    if tokens < ENDLESS:
        assert rate.credits(tokens + 1) > credits_


def test_a_hold_covers_what_both_its_tokens_and_its_credits_cover() -> None:
    rate = TokenRate(0, 0, 1_000_000)
    assert [covered(True, None, 50, 0), covered(False, None, 0, 0)] == [50, ENDLESS]
    assert [covered(True, rate, 50, 20), covered(True, rate, 50, 70), covered(False, rate, 0, 20)] == [
        20,
        50,
        20,
    ]


def test_no_use_costs_more_than_is_counted_exactly() -> None:
    assert credits_of(Service(1, "x", "consumption", credits=INTEGER_MAX), "", Usage(units=2)) == INTEGER_MAX


TIERS = Pricing(tiers=(Tier(None, Decimal(1)),))


@pytest.mark.parametrize(
    ("meter", "one_time", "pricing", "field"),
    [
        ("consumption", False, TOKEN.pricing, None),
        ("consumption", False, TIERS, "pricing.tiers"),
        ("consumption", True, TIERS, "pricing.tiers"),
        ("consumption", True, TOKEN.pricing, "pricing.per_million"),
        ("pay_per_use", False, TIERS, None),
        ("pay_per_use", False, TOKEN.pricing, "pricing.per_million"),
        ("subscription", False, TIERS, "pricing"),
        ("subscription", False, TOKEN.pricing, "pricing"),
        *((meter, False, NO_PRICING, None) for meter in ("consumption", "pay_per_use", "subscription")),
    ],
)
def test_a_business_model_uses_one_kind_of_price(
    meter: str, one_time: bool, pricing: Pricing, field: str | None
) -> None:
    found = misfit(meter, one_time, pricing)
    assert (found and found[0]) == field


def test_a_price_for_any_model_is_one_for_each() -> None:
    check_priced(TOKEN, "small", ("large",))
    with pytest.raises(ModelNotPriced):
        check_priced(TOKEN, "small", ("Large",))
    check_priced(Service(3, "chat", "consumption", pricing=Pricing(per_million={"*": TokenPrice()})), "any")


@pytest.mark.parametrize("pricing", [TIERS, TOKEN.pricing])
def test_a_subscription_is_not_priced_by_use(pricing: Pricing) -> None:
    check_priced(Service(4, "x", "subscription", pricing=pricing), "any")
