"""What a call claims of credits, and to how much output its hold binds it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.pricing import NO_PRICING, Pricing, TokenPrice
from gateway.core.calls.call import Call
from gateway.core.calls.claim import credits_claimed, output_bound
from gateway.core.calls.estimate import Estimate
from gateway.core.calls.tariff import credits_of
from gateway.core.model import Decision, Family, Service, Usage, Verdict


def service(price: TokenPrice | None = None, credits_: int = 0) -> Service:
    pricing = NO_PRICING if price is None else Pricing(per_million={"m": price})
    return Service(1, "s", "consumption", True, credits_, pricing=pricing)


def call(choices: int = 1) -> Call:
    return Call("openai_chat", Family("openai"), b"", "m", choices=choices)


UNBOUND = Estimate(need=300, ceiling=1_100, least=101, read=100)


def test_a_price_by_the_unit_is_claimed_whole() -> None:
    assert credits_claimed(service(credits_=7), "m", UNBOUND, 3) == (21, 0)
    assert credits_claimed(Service(1, "s"), "m", UNBOUND, 3) == (0, 0)


def test_a_price_by_token_is_claimed_for_all_a_call_could_use() -> None:
    one = service(TokenPrice(1_000_000, 2_000_000))
    assert credits_claimed(one, "m", UNBOUND, 1) == (100 + 2_000, 102)
    assert credits_claimed(one, "m", UNBOUND._replace(least=0), 1) == (2_100, 0)
    dear = service(TokenPrice(1_000_000, 2_000_000, cached=3_000_000))
    assert credits_claimed(dear, "m", UNBOUND, 1) == (2_300, 302)


def test_a_model_without_a_price_costs_what_a_unit_does() -> None:
    assert credits_claimed(service(TokenPrice(1, 1), 5), "other", UNBOUND, 2) == (10, 0)


def test_only_a_hold_that_bounds_says_how_much_may_be_written() -> None:
    held = Decision(Verdict.ADMITTED, held_tokens=500)
    assert output_bound(service(), call(), UNBOUND, held) is None
    held.bounded = True
    assert output_bound(service(), call(), UNBOUND, held) == 400
    assert output_bound(service(), call(choices=3), UNBOUND, held) == 133
    held.held_credits = 250
    assert output_bound(service(TokenPrice(1_000_000, 2_000_000)), call(), UNBOUND, held) == 75
    held.bounded = False
    assert output_bound(service(TokenPrice(1_000_000, 0)), call(), UNBOUND, held) is None


PRICES = st.tuples(
    st.integers(0, 5_000_000), st.integers(1, 5_000_000), st.none() | st.integers(0, 5_000_000)
)


@given(PRICES, st.integers(1, 5_000), st.integers(1, 8), st.integers(0, 50_000), st.data())
def test_no_call_costs_more_than_it_holds(
    prices: tuple[int, int, int | None], read: int, choices: int, beyond: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, 100))
    one = service(TokenPrice(*prices))
    estimate = Estimate(read, read + choices + beyond, read + choices, read)
    most, least = credits_claimed(one, "m", estimate, 1)
    held = Decision(Verdict.ADMITTED, held_credits=max(least, most * cut // 100))
    bound = output_bound(one, call(choices), estimate, held)
    assert bound is not None
    written = data.draw(st.integers(0, bound)) * choices
    cached_tokens = data.draw(st.integers(0, read))
    used = Usage(input=read, output=written, cached=cached_tokens)
    assert credits_of(one, "m", used) <= held.held_credits


@pytest.mark.parametrize("choices", [1, 4])
def test_the_least_lets_each_answer_have_a_token(choices: int) -> None:
    estimate = Estimate(100, 1_000, 100 + choices, 100)
    held = Decision(Verdict.ADMITTED, held_tokens=100 + choices, bounded=True)
    assert output_bound(service(), call(choices), estimate, held) == 1
