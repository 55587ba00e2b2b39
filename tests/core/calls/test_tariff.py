"""Credits of a use: by the unit, once, by token; never past what is counted exactly."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.money import (
    ENDLESS,
    NANO,
    NO_PRICING,
    CostMarkup,
    CreditRates,
    PriceTier,
    ServicePricing,
    whole_credits,
)
from gateway.core.billing.price_book import TokenRate
from gateway.core.billing.vector import Vector
from gateway.core.calls.tariff import (
    charge_of,
    covered,
    is_by_token,
    is_in_money,
    misfit,
    rate_of,
    vectors_of,
)
from gateway.core.model import INTEGER_MAX, Service, TokenUsage
from gateway.errors import ModelNotPriced
from tests.builders import credits_of, prices_of

PRICES = {"small": CreditRates(3, 15, 1), "large": CreditRates(input=3_000_000, output=15_000_000)}
UNIT = Service(1, "images", "consumption", credits=6)
ONCE = Service(2, "setup", "consumption", credits=500, one_time=True)
TOKEN = Service(3, "chat", "consumption", credits=6, pricing=ServicePricing(per_million=PRICES))


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
        (Service(4, "x", "pay_per_use", credits=6), "small", 4, (0, 0, 0), 0),
        (Service(5, "y", "subscription", credits=6), "small", 4, (0, 0, 0), 0),
    ],
)
def test_what_a_use_costs(
    service: Service, model: str, units: int, tokens: tuple[int, int, int], expected: int
) -> None:
    read, written, cached = tokens
    assert credits_of(service, TokenUsage(read, written, cached, units=units), model) == expected


def test_a_call_that_names_several_models_costs_the_dearest_whichever_is_first() -> None:
    used = TokenUsage(2, 3, 2)
    dear = credits_of(TOKEN, used, "large")
    assert dear > credits_of(TOKEN, used, "small")
    assert credits_of(TOKEN, used, "small", "large", "small") == dear
    assert credits_of(TOKEN, used, "large", "small") == dear
    both, large = prices_of(TOKEN, "small", "large"), prices_of(TOKEN, "large")
    assert rate_of(TOKEN, both, 5) == rate_of(TOKEN, large, 5)


def test_a_call_under_way_is_priced_as_it_will_be() -> None:
    assert rate_of(UNIT, (), 5) is None
    rate = rate_of(TOKEN, prices_of(TOKEN, "large"), 5)
    assert rate == TokenRate(5, 3 * 10**15, 15 * 10**15)
    assert [rate.credits(tokens) for tokens in (0, 5, 7)] == [0, 15, 45]
    assert rate.credits(7) == credits_of(TOKEN, TokenUsage(5, 2), "large")


PRICE = st.integers(0, 10**9)


@given(read=st.integers(0, 10**6), prices=st.tuples(PRICE, PRICE), credits_=st.integers(0, 10**9))
def test_credits_cover_as_many_tokens_as_they_pay_and_no_more(
    read: int, prices: tuple[int, int], credits_: int
) -> None:
    rate = TokenRate(read, *(price * NANO for price in prices))
    tokens = rate.covered(credits_)
    assert rate.credits(min(tokens, 10**9)) <= credits_
    if tokens < ENDLESS:
        assert rate.credits(tokens + 1) > credits_


def test_a_hold_covers_what_both_its_tokens_and_its_credits_cover() -> None:
    rate = TokenRate(0, 0, 10**15)
    assert [covered(True, None, 50, 0), covered(False, None, 0, 0)] == [50, ENDLESS]
    assert [covered(True, rate, 50, 20), covered(True, rate, 50, 70), covered(False, rate, 0, 20)] == [
        20,
        50,
        20,
    ]


def test_no_use_costs_more_than_is_counted_exactly() -> None:
    assert (
        credits_of(Service(1, "x", "consumption", credits=INTEGER_MAX), TokenUsage(units=2), "")
        == INTEGER_MAX
    )
    dear = ServicePricing(per_million={"*": CreditRates(INTEGER_MAX)})
    assert credits_of(replace(TOKEN, pricing=dear), TokenUsage(10**8), "any") == INTEGER_MAX


AT_COST = ServicePricing(at_cost=CostMarkup(Decimal("1.2")))
IN_CREDITS = ServicePricing(at_cost=CostMarkup(Decimal("1.2"), Decimal(250)))
TIERS = ServicePricing(tiers=(PriceTier(None, Decimal(1)),))


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
        ("consumption", False, IN_CREDITS, None),
        ("consumption", True, IN_CREDITS, "pricing.at_cost"),
        ("consumption", False, AT_COST, "pricing.at_cost.credits_per_unit"),
        ("pay_per_use", False, AT_COST, None),
        ("pay_per_use", True, AT_COST, "pricing.at_cost"),
        ("pay_per_use", False, IN_CREDITS, "pricing.at_cost.credits_per_unit"),
        ("subscription", False, AT_COST, "pricing"),
        *((meter, False, NO_PRICING, None) for meter in ("consumption", "pay_per_use", "subscription")),
    ],
)
def test_a_business_model_uses_one_kind_of_price(
    meter: str, one_time: bool, pricing: ServicePricing, field: str | None
) -> None:
    found = misfit(meter, one_time, pricing)
    assert (found and found[0]) == field


def test_a_price_for_any_model_is_one_for_each() -> None:
    assert len(prices_of(TOKEN, "small", "large")) == 1
    with pytest.raises(ModelNotPriced):
        prices_of(TOKEN, "small", "Large")
    any_model = Service(3, "chat", "consumption", pricing=ServicePricing(per_million={"*": CreditRates()}))
    assert len(prices_of(any_model, "any")) == 1


@pytest.mark.parametrize("pricing", [TIERS, TOKEN.pricing])
def test_a_subscription_is_not_priced_by_use(pricing: ServicePricing) -> None:
    assert prices_of(Service(4, "x", "subscription", pricing=pricing), "any") == ()


# --- what the call itself costs ----------------------------------------------------------

BOOK = {name: Vector(at, "USD", (at * 10**9,) * 10) for at, name in enumerate(("cheap", "dear"), 1)}
MONEY = Service(6, "money", "pay_per_use", pricing=AT_COST)
BOUGHT = Service(7, "bought", "consumption", pricing=IN_CREDITS)
NO_COUNTS = (0,) * 10


def test_at_cost_goes_by_the_price_book_of_every_model_that_may_answer() -> None:
    for service in (MONEY, BOUGHT):
        assert vectors_of(service, ("cheap", "dear"), BOOK.get) == (BOOK["cheap"], BOOK["dear"])
        with pytest.raises(ModelNotPriced, match="other"):
            vectors_of(service, ("cheap", "other"), BOOK.get)
        with pytest.raises(ModelNotPriced, match="names none"):
            vectors_of(service, ("",), BOOK.get)
    assert [is_in_money(one) for one in (MONEY, BOUGHT, TOKEN)] == [True, False, False]
    assert [is_by_token(one) for one in (MONEY, BOUGHT)] == [False, True]


@given(cost=st.integers(0, 10**13), markup=st.integers(1, 10**9), rate=st.integers(1, 10**12))
def test_at_cost_is_cost_times_markup_rounded_once(cost: int, markup: int, rate: int) -> None:
    at_cost = CostMarkup(Decimal(markup).scaleb(-6), Decimal(rate).scaleb(-9))
    wanted = Fraction(cost) * Fraction(markup, 10**6)
    money = Service(6, "m", "pay_per_use", pricing=ServicePricing(at_cost=CostMarkup(at_cost.markup)))
    credits_, over, units = charge_of(money, (BOOK["cheap"],), NO_COUNTS, cost, 1)
    assert (credits_, over) == (0, 0)
    assert units == min(INTEGER_MAX, int(wanted + Fraction(1, 2)))
    bought = Service(7, "b", "consumption", pricing=ServicePricing(at_cost=at_cost))
    nano = int(wanted * Fraction(rate, 10**9) + Fraction(1, 2))
    credits_, over, units = charge_of(bought, (BOOK["cheap"],), NO_COUNTS, cost, 1)
    if nano <= INTEGER_MAX * NANO:
        assert ((credits_, over), units) == (whole_credits(nano), 1)
        assert (credits_ * NANO - over, 0 <= over < NANO) == (nano, True)
    else:
        assert (credits_, over) == (INTEGER_MAX, 0)
