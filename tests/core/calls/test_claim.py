"""What a call claims of credits and money, and to how much output its hold binds it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.cost import cost_nano
from gateway.core.billing.pricing import NO_PRICING, AtCost, Pricing, TokenPrice, whole_credits
from gateway.core.billing.rate import Asks, TokenRate
from gateway.core.billing.vector import KINDS, Vector
from gateway.core.calls.call import Call
from gateway.core.calls.claim import asks_of, claimed, dearest_of, output_bound
from gateway.core.calls.estimate import Estimate
from gateway.core.calls.tariff import charge_of
from gateway.core.calls.tool_uses import TOOL_USES
from gateway.core.model import Decision, Family, Service, Usage, Verdict
from gateway.core.names import names_in
from tests.builders import credits_of, prices_of


def service(price: TokenPrice | None = None, credits_: int = 0) -> Service:
    pricing = NO_PRICING if price is None else Pricing(per_million={"m": price})
    return Service(1, "s", "consumption", True, credits_, pricing=pricing)


def call(choices: int = 1) -> Call:
    return Call("openai_chat", Family("openai"), b"", "m", choices=choices)


def rate(one: Service, estimate: Estimate) -> TokenRate | None:
    return dearest_of(one, prices_of(one, "m"), estimate, call())


UNBOUND = Estimate(need=300, ceiling=1_100, least=101, read=100)


def test_a_price_by_the_unit_is_claimed_whole() -> None:
    assert claimed(service(credits_=7), None, UNBOUND, 3) == (21, 0, 3)
    assert claimed(Service(1, "s"), None, UNBOUND, 3) == (0, 0, 3)


def test_a_price_by_token_is_claimed_for_all_a_call_could_use() -> None:
    one = service(TokenPrice(1_000_000, 2_000_000))
    assert claimed(one, rate(one, UNBOUND), UNBOUND, 1) == (100 + 2_000, 102, 1)
    bound = replace(UNBOUND, least=0)
    assert claimed(one, rate(one, bound), bound, 1) == (2_100, 0, 1)
    dear = service(TokenPrice(1_000_000, 2_000_000, cache_read=3_000_000))
    assert claimed(dear, rate(dear, UNBOUND), UNBOUND, 1) == (2_300, 302, 1)


def test_only_a_hold_that_bounds_says_how_much_may_be_written() -> None:
    held = Decision(Verdict.ADMITTED, held_tokens=500)
    assert output_bound(None, call(), UNBOUND, held) is None
    held.bounded = True
    assert output_bound(None, call(), UNBOUND, held) == 400
    assert output_bound(None, call(choices=3), UNBOUND, held) == 133
    held.held_credits = 250
    dear = rate(service(TokenPrice(1_000_000, 2_000_000)), UNBOUND)
    assert output_bound(dear, call(), UNBOUND, held) == 75
    held.bounded = False
    assert output_bound(rate(service(TokenPrice(1_000_000, 0)), UNBOUND), call(), UNBOUND, held) is None


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
    dear = rate(one, estimate)
    most, least, _ = claimed(one, dear, estimate, 1)
    held = Decision(Verdict.ADMITTED, held_credits=max(least, most * cut // 100))
    bound = output_bound(dear, call(choices), estimate, held)
    assert bound is not None
    written = data.draw(st.integers(0, bound)) * choices
    cached_tokens = data.draw(st.integers(0, read))
    used = Usage(input=read, output=written, cached=cached_tokens)
    assert credits_of(one, used, "m") <= held.held_credits


@pytest.mark.parametrize("choices", [1, 4])
def test_the_least_lets_each_answer_have_a_token(choices: int) -> None:
    estimate = Estimate(100, 1_000, 100 + choices, 100)
    held = Decision(Verdict.ADMITTED, held_tokens=100 + choices, bounded=True)
    assert output_bound(None, call(choices), estimate, held) == 1


# --- which prices a call may have --------------------------------------------------------

# A price of each kind of its own, a tier of long calls, a dearer and a cheaper service tier, a tool.
BASE = dict(zip(KINDS, (100, 10, 125, 200, 500, 600, 800, 3_000, 90, 4_000), strict=True))
FULL = Vector(
    1, "USD", tuple(10**6 * BASE[kind] for kind in KINDS), 7_000, {"web_search": 10**9},
    ((1_000, tuple(2 * 10**6 * BASE[kind] for kind in KINDS)),), {"priority": (7, 4), "flex": (1, 2)},
)  # fmt: skip
# Of which everything is dearer than text.
LOUD = FULL._replace(
    prices=tuple(9_000 * 10**6 if kind == "audio_output" else 10**6 * BASE[kind] for kind in KINDS)
)


def asked(**fields: Any) -> Call:
    document = {"model": "m", "messages": [{"role": "user", "content": "of caches and audio"}], **fields}
    body = msgspec.json.encode(document)
    return Call("openai_chat", Family("openai"), body, "m", document=document, names=names_in(document))


@pytest.mark.parametrize(
    ("fields", "asks"),
    [
        ({}, {}),
        ({"system": [{"cache_control": {"type": "ephemeral"}}]}, {"caches": True}),
        ({"modalities": ["text", "audio"]}, {"sound": True}),
        ({"generationConfig": {"responseModalities": ["AUDIO"]}}, {"sound": True}),
        ({"image_url": {"url": "https://example.com/a.png"}}, {"blobs": True}),
        ({"service_tier": "flex"}, {"tiers": False}),
        ({"service_tier": "priority"}, {}),
        ({"service_tier": ["flex"]}, {}),
        ({"tools": [{"type": "web_search"}]}, {"tools": {"web_search": TOOL_USES}}),
    ],
)
def test_what_is_written_says_which_prices_a_call_may_have(
    fields: dict[str, Any], asks: dict[str, Any]
) -> None:
    plain = {"caches": False, "blobs": False, "sound": False, "tiers": True, "tools": {}}
    assert asks_of(asked(**fields), (LOUD,)) == Asks(**plain | asks)


def test_what_makes_no_call_dearer_is_not_looked_for() -> None:
    flat = Vector(2, "USD", (5,) * len(KINDS))
    loud = asked(modalities=["audio"], service_tier="priority", cache_control={"type": "ephemeral"})
    assert asks_of(loud, (flat,)) == Asks(caches=False, blobs=False, sound=False, tiers=False)
    assert asks_of(loud, (flat, LOUD)) == asks_of(loud, (LOUD,))
    # Dearer from so many tokens on: what reads less is not.
    above = flat._replace(context_tiers=((1_000, LOUD.prices),))
    assert not asks_of(loud, (above,), 1_000).caches
    assert asks_of(loud, (above,), 1_001).caches


def test_of_a_call_that_cannot_be_read_any_price_is_held() -> None:
    assert asks_of(call(), (FULL,)) == Asks()


COUNT = st.integers(0, 3_000)


@given(
    counts=st.tuples(*[COUNT] * len(KINDS)),
    spare=st.integers(0, 500),
    tier=st.sampled_from(["", "priority", "flex"]),
    searches=st.integers(0, 5),
    factor=st.tuples(st.integers(1, 3 * 10**6), st.none() | st.integers(1, 10**15)),
)
def test_a_call_within_its_estimate_never_costs_more_than_it_holds(
    counts: tuple[int, ...], spare: int, tier: str, searches: int, factor: tuple[int, int | None]
) -> None:
    markup, rate = factor
    read, written = sum(counts[:4]), counts[4]
    at_cost = AtCost(Decimal(markup).scaleb(-6), None if rate is None else Decimal(rate).scaleb(-9))
    meter = "pay_per_use" if rate is None else "consumption"
    one = Service(1, "s", meter, pricing=Pricing(at_cost=at_cost))
    within = list(counts)
    within[5], within[6] = min(counts[5], written), min(counts[6], counts[0])
    within[7], within[8] = min(counts[7], written - within[5]), min(counts[8], counts[0] - within[6])
    within[9] = min(counts[9], written - within[5] - within[7])
    writes = {"system": [{"cache_control": {}}]} if counts[2] or counts[3] else {}
    blobs = {"image_url": {"url": "x"}} if within[6] or within[8] else {}
    sound = {"modalities": ["audio"]} if within[7] else {}
    tools = {"tools": [{"type": "web_search", "max_uses": searches}]} if searches else {}
    body = asked(**writes, **blobs, **sound, **tools, **({"service_tier": tier} if tier == "flex" else {}))
    body.meter = "anthropic_messages"
    estimate = Estimate(read + written, read + spare + written, 0, read + spare)
    dear = dearest_of(one, (FULL,), estimate, body)
    held, _, units = claimed(one, dear, estimate, 1)
    cost = cost_nano(FULL, within, {"web_search": searches}, tier)
    credits_, over, used = charge_of(one, (FULL,), within, cost, 1)
    assert credits_ <= held
    assert used <= units
    if rate is not None:
        assert (credits_, over) == whole_credits(credits_ * 10**9 - over)


def test_a_plain_call_holds_no_more_than_plain_prices() -> None:
    one = Service(1, "s", "pay_per_use", pricing=Pricing(at_cost=AtCost(Decimal(1))))
    estimate = Estimate(100, 150, 0, 50)
    plain = asked(service_tier="default")
    units = claimed(one, dearest_of(one, (FULL,), estimate, plain), estimate, 1)[2]
    assert units == 50 * 100 + 100 * 4_000 + 7_000
