"""What a call claims of credits and money, and to how much output its hold binds it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.billing.money import NO_PRICING, CostMarkup, CreditRates, ServicePricing, whole_credits
from gateway.core.billing.price_book import KINDS, PriceQualifiers, TokenRate, cost_nano
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Body, CallRequest, CallSpec, names_in
from gateway.core.calls.claims import asks_of, claimed, dearest_of, output_bound
from gateway.core.calls.estimate import Estimate
from gateway.core.calls.tariff import charge_of
from gateway.core.families.controlled import elements
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.model import GENERIC, Admitted, Family, Service, TokenUsage
from tests.builders import credits_of, prices_of
from tests.search import examples


def service(price: CreditRates | None = None, credits_: int = 0) -> Service:
    pricing = NO_PRICING if price is None else ServicePricing(per_million={"m": price})
    return Service(1, "s", "consumption", True, credits_, pricing=pricing)


def call(choices: int = 1) -> CallRequest:
    return CallRequest("openai_chat", Family("openai"), Body(), CallSpec("m", choices=choices))


def rate(one: Service, estimate: Estimate) -> TokenRate | None:
    return dearest_of(one, prices_of(one, "m"), estimate, call())


UNBOUND = Estimate(need=300, ceiling=1_100, least=101, read=100)


def test_a_price_by_the_unit_is_claimed_whole() -> None:
    assert claimed(service(credits_=7), None, UNBOUND, 3) == (21, 0, 3)
    assert claimed(Service(1, "s"), None, UNBOUND, 3) == (0, 0, 3)


def test_a_price_by_token_is_claimed_for_all_a_call_could_use() -> None:
    one = service(CreditRates(1_000_000, 2_000_000))
    assert claimed(one, rate(one, UNBOUND), UNBOUND, 1) == (100 + 2_000, 102, 1)
    bound = replace(UNBOUND, least=0)
    assert claimed(one, rate(one, bound), bound, 1) == (2_100, 0, 1)
    dear = service(CreditRates(1_000_000, 2_000_000, cache_read=3_000_000))
    assert claimed(dear, rate(dear, UNBOUND), UNBOUND, 1) == (2_300, 302, 1)


def test_only_a_hold_that_bounds_says_how_much_may_be_written() -> None:
    held = Admitted(held_tokens=500)
    assert output_bound(None, call(), UNBOUND, held) is None
    held.bounded = True
    assert output_bound(None, call(), UNBOUND, held) == 400
    assert output_bound(None, call(choices=3), UNBOUND, held) == 133
    held.held_credits = 250
    dear = rate(service(CreditRates(1_000_000, 2_000_000)), UNBOUND)
    assert output_bound(dear, call(), UNBOUND, held) == 75
    held.bounded = False
    assert output_bound(rate(service(CreditRates(1_000_000, 0)), UNBOUND), call(), UNBOUND, held) is None


PRICES = st.tuples(
    st.integers(0, 5_000_000), st.integers(1, 5_000_000), st.none() | st.integers(0, 5_000_000)
)


@given(PRICES, st.integers(1, 5_000), st.integers(1, 8), st.integers(0, 50_000), st.data())
def test_no_call_costs_more_than_it_holds(
    prices: tuple[int, int, int | None], read: int, choices: int, beyond: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, 100))
    one = service(CreditRates(*prices))
    estimate = Estimate(read, read + choices + beyond, read + choices, read)
    dear = rate(one, estimate)
    most, least, _ = claimed(one, dear, estimate, 1)
    held = Admitted(held_credits=max(least, most * cut // 100))
    bound = output_bound(dear, call(choices), estimate, held)
    assert bound is not None
    written = data.draw(st.integers(0, bound)) * choices
    cached_tokens = data.draw(st.integers(0, read))
    used = TokenUsage(input=read, output=written, cached=cached_tokens)
    assert credits_of(one, used, "m") <= held.held_credits


@pytest.mark.parametrize("choices", [1, 4])
def test_the_least_lets_each_answer_have_a_token(choices: int) -> None:
    estimate = Estimate(100, 1_000, 100 + choices, 100)
    held = Admitted(held_tokens=100 + choices, bounded=True)
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


def asked(meter: str = "openai_chat", /, **fields: Any) -> CallRequest:
    """A call that says text alone, but for these fields."""
    said = {"contents": [{"parts": [{"text": "of caches and audio"}]}]}
    if not meter.startswith("gemini"):
        said = {"messages": [{"role": "user", "content": "of caches and audio"}]}
    document = {"model": "m", **said, **fields}
    body = msgspec.json.encode(document)
    family = OF_METER[meter].name
    tools, plugins = elements(document, "tools"), elements(document, "plugins")
    return CallRequest(
        meter,
        family,
        Body(body, document=document, tools=tools, plugins=plugins, names=names_in(document)),
        CallSpec("m"),
    )


# What each family documents: fields, and what of the dear prices they let a call have.
OPENAI, GEMINI = "openai_chat", "gemini_generate"
MESSAGES = "anthropic_messages"
ANY = frozenset({"priority", "flex", "fast", "us"})
SLOW = ANY - {"fast"}
PART = {"role": "user", "content": [{"type": "text", "text": "x"}]}
DOCUMENTED: list[tuple[str, dict[str, Any], set[str], frozenset[str]]] = [
    # Caches are written unasked; a tier that is not said is the usual one, `auto` may be any of the project's.
    (OPENAI, {}, {"caches"}, frozenset()),
    (OPENAI, {"service_tier": "auto"}, {"caches"}, ANY),
    (OPENAI, {"service_tier": "default"}, {"caches"}, frozenset()),
    (OPENAI, {"service_tier": "flex"}, {"caches"}, frozenset()),
    (OPENAI, {"service_tier": "standard_only"}, {"caches"}, ANY),
    (OPENAI, {"service_tier": "default", "speed": "fast"}, {"caches"}, ANY),
    (OPENAI, {"service_tier": ["flex"]}, {"caches"}, ANY),
    (OPENAI, {"modalities": ["text", "audio"]}, {"caches", "sound"}, frozenset()),
    (OPENAI, {"modalities": ["text"]}, {"caches"}, frozenset()),
    (OPENAI, {"modalities": "audio"}, {"caches", "sound"}, frozenset()),
    (OPENAI, {"messages": [PART]}, {"caches"}, frozenset()),
    (OPENAI, {"messages": [{"content": [{"type": "image_url", "image_url": {}}]}]}, {"caches", "blobs"}, frozenset()),
    (OPENAI, {"messages": [{"content": [{"type": "tomorrow"}]}]}, {"caches", "blobs"}, frozenset()),
    (OPENAI, {"messages": [{"content": [{"input_audio": {}}]}]}, {"caches", "blobs"}, frozenset()),
    (OPENAI, {"tools": [{"type": "function", "function": {}}]}, {"caches"}, frozenset()),
    (OPENAI, {"tools": [{"type": "file_search"}]}, {"caches", "blobs"}, frozenset()),
    ("openai_responses", {"input": [{"type": "item_reference", "id": "x"}]}, {"caches", "blobs"}, frozenset()),
    ("openai_responses", {"previous_response_id": "x"}, {"caches", "blobs"}, frozenset()),
    ("openai_responses", {"input": [PART, {"type": "function_call_output", "output": "x"}]}, {"caches"}, frozenset()),
    # A cache is written where it is asked for; a speed is not a tier.
    (MESSAGES, {}, set(), SLOW),
    (MESSAGES, {"system": [{"type": "text", "cache_control": {}}]}, {"caches"}, SLOW),
    (MESSAGES, {"tools": [{"input_schema": {}, "Caching": {}}]}, {"caches"}, SLOW),
    (MESSAGES, {"service_tier": "standard_only"}, set(), frozenset({"us"})),
    (MESSAGES, {"service_tier": "standard_only", "speed": "fast"}, set(), frozenset({"fast", "us"})),
    (MESSAGES, {"service_tier": "standard_only", "speed": "tomorrow"}, set(), frozenset({"fast", "us"})),
    (MESSAGES, {"inference_geo": "us"}, set(), SLOW),
    (MESSAGES, {"inference_geo": "Global"}, set(), SLOW),
    (MESSAGES, {"inference_geo": "global"}, set(), SLOW - {"us"}),
    (MESSAGES, {"speed": "standard", "service_tier": "default"}, set(), SLOW),
    (MESSAGES, {"messages": [{"content": [{"type": "image"}]}]}, {"blobs"}, SLOW),
    (MESSAGES, {"tools": [{"type": "web_fetch_20250910"}]}, {"blobs"}, SLOW),
    # Caches are written unasked; text and the standard tier are what nobody has to ask for.
    (GEMINI, {}, {"caches"}, frozenset()),
    (GEMINI, {"serviceTier": "flex"}, {"caches"}, frozenset()),
    (GEMINI, {"service_tier": "priority"}, {"caches"}, ANY),
    (GEMINI, {"serviceTier": "standard", "service_tier": 3}, {"caches"}, ANY),
    (GEMINI, {"generationConfig": {"responseModalities": ["AUDIO"]}}, {"caches", "sound"}, frozenset()),
    (GEMINI, {"generation_config": {"response_modalities": [3]}}, {"caches", "sound"}, frozenset()),
    (GEMINI, {"generationConfig": {"responseModalities": ["TEXT", "Image"]}}, {"caches"}, frozenset()),
    (GEMINI, {"contents": {"parts": {"inlineData": {"data": "x"}}}}, {"caches", "blobs"}, frozenset()),
    (GEMINI, {"contents": [{"parts": [{"functionResponse": {"parts": []}}]}]}, {"caches", "blobs"},
     frozenset()),
    (GEMINI, {"contents": [{"Parts": []}]}, {"caches", "blobs"}, frozenset()),
    (GEMINI, {"cachedContent": "x"}, {"caches", "blobs"}, frozenset()),
    (GEMINI, {"tools": [{"functionDeclarations": []}]}, {"caches"}, frozenset()),
    (GEMINI, {"tools": [{"urlContext": {}}]}, {"caches", "blobs"}, frozenset()),
]  # fmt: skip
TIERED = LOUD._replace(service_tiers=dict.fromkeys(ANY, (2, 1)), tools={})


@pytest.mark.parametrize(("meter", "fields", "dear", "tiers"), DOCUMENTED)
def test_a_dear_price_is_ruled_out_only_by_what_is_documented(
    meter: str, fields: dict[str, Any], dear: set[str], tiers: frozenset[str]
) -> None:
    found = asks_of(asked(meter, **fields), (TIERED,))
    assert {name for name in ("caches", "blobs", "sound") if getattr(found, name)} == dear
    assert {*(found.tiers or ())} == tiers


@settings(max_examples=examples(50))
@given(
    st.sampled_from(sorted(SHAPES)),
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
        st.none() | st.text(st.characters(codec="utf-8")),
    ),
)
def test_fields_that_nobody_documented_make_no_call_cheaper(meter: str, unknown: dict[str, Any]) -> None:
    plain, more = asks_of(asked(meter), (TIERED,)), asks_of(asked(meter, **unknown), (TIERED,))
    for name in ("caches", "blobs", "sound"):
        assert getattr(more, name) >= getattr(plain, name)
    assert set(more.tiers or ()) >= set(plain.tiers or ())


def test_a_family_that_documents_nothing_rules_nothing_out() -> None:
    assert (
        asks_of(CallRequest("generic", GENERIC, Body(document={}), CallSpec("m")), (TIERED,))
        == PriceQualifiers()
    )


def test_what_makes_no_call_dearer_is_not_looked_for() -> None:
    flat = Vector(2, "USD", (5,) * len(KINDS))
    loud = asked(modalities=["audio"], service_tier="priority")
    assert asks_of(loud, (flat,)) == PriceQualifiers(False, False, False, False, ())
    assert asks_of(loud, (flat, LOUD)) == asks_of(loud, (LOUD,))
    # Dearer from so many tokens on: what reads less is not.
    above = flat._replace(context_tiers=((1_000, LOUD.prices),))
    assert not asks_of(loud, (above,), 1_000).caches
    assert asks_of(loud, (above,), 1_001).caches


def test_of_a_call_that_cannot_be_read_any_price_is_held() -> None:
    assert asks_of(call(), (FULL,)) == PriceQualifiers()


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
    at_cost = CostMarkup(Decimal(markup).scaleb(-6), None if rate is None else Decimal(rate).scaleb(-9))
    meter = "pay_per_use" if rate is None else "consumption"
    one = Service(1, "s", meter, pricing=ServicePricing(at_cost=at_cost))
    within = list(counts)
    within[5], within[6] = min(counts[5], written), min(counts[6], counts[0])
    within[7], within[8] = min(counts[7], written - within[5]), min(counts[8], counts[0] - within[6])
    within[9] = min(counts[9], written - within[5] - within[7])
    writes = {"system": [{"cache_control": {}}]} if counts[2] or counts[3] else {}
    blobs = {"messages": [{"content": [{"type": "image"}]}]} if within[6] or within[8] else {}
    within[7] = 0  # no answer of messages is heard
    tools = {"tools": [{"type": "web_search", "max_uses": searches}]} if searches else {}
    body = asked(MESSAGES, **writes, **blobs, **tools, **({} if tier else {"service_tier": "standard_only"}))
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
    one = Service(1, "s", "pay_per_use", pricing=ServicePricing(at_cost=CostMarkup(Decimal(1))))
    estimate = Estimate(100, 150, 0, 50)
    plain = asked(MESSAGES, service_tier="standard_only")
    units = claimed(one, dearest_of(one, (FULL,), estimate, plain), estimate, 1)[2]
    assert units == 50 * 100 + 100 * 4_000 + 7_000
