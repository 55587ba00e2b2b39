"""What a call costs before it is over: no less than it will be charged, and not beyond what is counted."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.money import ENDLESS, NANO
from gateway.core.billing.price_book import PriceQualifiers, TokenRate, dearest_rate, usual_rate
from gateway.core.billing.vector import Vector

PRICE = st.integers(0, 10**12)
FACTOR = st.tuples(st.integers(1, 10**9), st.integers(1, 10**9))


@given(
    read=st.integers(0, 10**5), prices=st.tuples(PRICE, PRICE, PRICE), factor=FACTOR,
    tokens=st.integers(0, 10**6),
)  # fmt: skip
def test_it_costs_its_tokens_and_what_is_fixed_rounded_up(
    read: int, prices: tuple[int, int, int], factor: tuple[int, int], tokens: int
) -> None:
    input_, output, fixed = prices
    rate = TokenRate(read, input_, output, fixed, factor)
    first = min(read, tokens)
    cost = ceil(fixed + Fraction(first * input_ + (tokens - first) * output, 10**6))
    assert rate.nano(tokens) == ceil(Fraction(cost * factor[0], factor[1]))
    assert rate.credits(tokens) == min(ENDLESS, ceil(Fraction(rate.nano(tokens), NANO)))


@given(
    read=st.integers(0, 10**5), prices=st.tuples(PRICE, PRICE, PRICE), factor=FACTOR,
    credits_=st.integers(0, 10**6),
)  # fmt: skip
def test_credits_cover_as_many_tokens_as_they_pay(
    read: int, prices: tuple[int, int, int], factor: tuple[int, int], credits_: int
) -> None:
    rate = TokenRate(read, *prices, factor)
    most = rate.covered(credits_)
    if rate.credits(0) <= credits_ and most < ENDLESS:
        assert rate.credits(most) <= credits_ < rate.credits(most + 1)


def test_in_money_there_are_no_credits_to_cover_it() -> None:
    rate = TokenRate(10, 10**9, 2 * 10**9, in_money=True)
    assert (rate.credits(15), rate.charge_for(15), rate.covered(0)) == (0, 20_000, ENDLESS)
    assert TokenRate(10, 10**30, 0, in_money=True).charge_for(10) == ENDLESS
    assert TokenRate(10, 10**40, 0).charge_for(10) == ENDLESS


TEXT = (100, 10, 125, 200, 500, 500, 100, 500, 100, 500)
LONG = Vector(1, "USD", TEXT, context_tiers=((1000, tuple(2 * each for each in TEXT)),))


@pytest.mark.parametrize(("read", "prices"), [(1000, (200, 500)), (1001, (400, 1000))])
def test_a_long_context_counts_where_the_call_may_have_read_as_much(
    read: int, prices: tuple[int, int]
) -> None:
    dearest = dearest_rate([LONG], read, PriceQualifiers(), in_money=True)
    assert (dearest.input, dearest.output) == prices
    usual = usual_rate([LONG], read, in_money=True)
    assert (usual.input, usual.output) == (prices[0] // 2, prices[1])


def test_of_several_models_each_part_is_the_dearest() -> None:
    other = Vector(2, "USD", (300, *TEXT[1:4], 50, 50, 100, 50, 100, 50), request=9)
    found = dearest_rate([LONG, other], 10, PriceQualifiers(caches=False), in_money=False)
    assert (found.input, found.output, found.fixed) == (300, 500, 9)
    loud = Vector(3, "USD", (*other.prices[:7], 600, *other.prices[8:]))
    for sound, output in ((True, 600), (False, 500)):
        asks = PriceQualifiers(sound=sound)
        assert dearest_rate([loud, LONG, other], 10, asks, in_money=False).output == output


@given(
    read=st.lists(st.sampled_from([0, 9, 10, 11, 1_000, 1_001]), min_size=2, max_size=40),
    asked=st.lists(st.tuples(*[st.booleans()] * 4, st.sampled_from([None, (), ("fast",), ("far", "new")]))),
)
def test_a_remembered_rate_is_that_of_the_same_price_twice(
    read: list[int], asked: list[tuple[bool, bool, bool, bool, tuple[str, ...] | None]]
) -> None:
    """Rates of several prices are not remembered. More kinds of calls come than a price remembers rates of."""
    fast = Vector(4, "USD", tuple(3 * each for each in TEXT), 5, context_tiers=((10, (9_000,) * 10),))
    price = LONG._replace(tiers={"fast": fast}, service_tiers={"far": (11, 10)}, request=7)
    for caches, long_caches, blobs, sound, tiers in asked:
        asks = PriceQualifiers(caches, long_caches, blobs, sound, tiers)
        for tokens in read:
            alone, twice = [dearest_rate([price] * n, tokens, asks, in_money=True) for n in (1, 2)]
            assert alone == twice
