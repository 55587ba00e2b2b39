"""What a call claims of budgets, and to how much output what they hold of it binds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.price_book import KINDS, TokenRate, cost_nano
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Body, CallRequest, CallSpec, Media, names_in
from gateway.core.calls.claims import BudgetClaim, budget_bound, budget_claim
from gateway.core.calls.estimate import Estimate
from gateway.core.families.registry import OF_METER
from gateway.core.model import INTEGER_MAX, Admitted, Family

MILLION = 1_000_000
MONEY, TOKENS = frozenset({"money"}), frozenset({"tokens"})


def price(read: int, written: int, price_id: int = 1) -> Vector:
    """A price in nano-units a token."""
    each = ((written if "output" in kind or kind == "reasoning" else read) * MILLION for kind in KINDS)
    return Vector(price_id, "USD", tuple(each))


def call(choices: int = 1, input_bytes: int = 300) -> CallRequest:
    return CallRequest(
        "openai_chat", Family("openai"), Body(), CallSpec("m", choices=choices), input_bytes=input_bytes
    )


# 300 bytes: 100 tokens by their mean, 150 at most.
OPEN = Estimate(need=300, ceiling=1_150, least=151, read=150)
STATED = Estimate(need=1_100, ceiling=1_150, least=0, read=150)


def held(money: int = 0, raw: int = 0) -> Admitted:
    return Admitted(money_held=money, budget_tokens_held=raw)


def test_what_is_likely_is_claimed_and_all_it_could_use_under_a_strict_plan() -> None:
    claim = budget_claim([price(2, 5)], OPEN, call())
    assert claim.money == 100 * 2 + 200 * 5
    assert claim.money_most == 150 * 2 + 1_000 * 5
    assert claim.money_least == 150 * 2 + 5
    assert (claim.budget_tokens_most, claim.budget_tokens) == (1_150, 300)


@given(
    prices=st.lists(st.integers(0, 9), min_size=len(KINDS), max_size=len(KINDS)),
    dearer=st.lists(st.integers(0, 9), min_size=len(KINDS), max_size=len(KINDS)),
    above=st.sampled_from([10, 120, 200]),
    tiers=st.sampled_from([{}, {"fast": (3, 2)}]),
    tool=st.integers(0, 9),
    estimate=st.sampled_from([OPEN, STATED, replace(OPEN, input_share=0.5)]),
    hold=st.sampled_from(["", "likely", "maximum"]),
    document=st.sampled_from(
        [{}, {"tools": [{"type": "web_search"}]}, {"cache_control": {"ttl": "1h"}}, {"service_tier": "fast"}]
    ),
    model=st.sampled_from(["m", "m-search"]),
)
def test_a_call_of_plain_text_claims_what_any_other_does(  # noqa: PLR0917  # drawn
    prices: list[int], dearer: list[int], above: int, tiers: dict[str, Any], tool: int, estimate: Estimate,
    hold: str, document: dict[str, Any], model: str,
) -> None:  # fmt: skip
    """Whether somebody has looked for tools in it decides nothing but how soon its rate is found."""
    vector = Vector(
        1, "USD", tuple(prices), tool, {"web_search": tool}, ((above, tuple(dearer)),), service_tiers=tiers
    )
    claims = []
    for asks in (None, "tools" in document):
        made = call()
        made.spec, made.body.document, made.body.names = CallSpec(model), document, names_in(document)
        made.body.tools, made.asks = document.get("tools", ()), asks
        claims.append(budget_claim([vector], estimate, made, hold))
    assert claims[0] == claims[1]


def test_a_stated_maximum_is_claimed_whole() -> None:
    claim = budget_claim([price(2, 5)], STATED, call())
    assert claim.money == 100 * 2 + 1_000 * 5
    assert claim.money_least == 0


def test_of_the_models_that_may_answer_the_dearest_is_claimed() -> None:
    claim = budget_claim([price(2, 5), price(1, 50, 2)], OPEN, call())
    assert claim.money == 100 * 2 + 200 * 50
    assert claim.dearest == TokenRate(150, 2 * MILLION, 50 * MILLION, in_money=True)


def test_without_a_price_there_is_no_money() -> None:
    claim = budget_claim([], OPEN, call())
    assert claim == BudgetClaim(budget_tokens=300, budget_tokens_most=1_150)
    assert budget_bound(claim, call(), OPEN, held(0, 300), MONEY | TOKENS) is None


def test_a_claim_is_counted_exactly_or_at_its_most() -> None:
    claim = budget_claim([price(10**15, 10**15)], OPEN, call())
    assert claim.money_most == claim.money == INTEGER_MAX


def test_a_hold_that_was_cut_or_is_strict_binds_the_answer() -> None:
    claim = budget_claim([price(2, 5)], OPEN, call())
    assert budget_bound(claim, call(), OPEN, held(claim.money, 300), MONEY | TOKENS) is None
    assert budget_bound(claim, call(), OPEN, held(150 * 2 + 40 * 5), MONEY) == 40
    assert budget_bound(claim, call(choices=2), OPEN, held(150 * 2 + 40 * 5), MONEY) == 20
    assert budget_bound(claim, call(), OPEN, held(claim.money_most), MONEY) == 1_000
    assert budget_bound(claim, call(), OPEN, held(claim.money, 200), MONEY | TOKENS) == 50
    assert budget_bound(claim, call(), OPEN, held(claim.money_least, 1_150), MONEY | TOKENS) == 1


# As Anthropic's models are priced: what is read, kept in a cache, and for an hour.
CACHED = Vector(
    3, "USD", tuple(MILLION * one for one in (8, 1, 10, 16, 40, 40, 8, 40, 8, 40)),
    service_tiers={"fast": (2, 1), "us": (11, 10), "priority": (3, 1)},
)  # fmt: skip


def asked(meter: str = "anthropic_messages", blobs: int = 0, **fields: Any) -> CallRequest:
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    one = CallRequest(
        meter, Family(meter.partition("_")[0]), Body(document=document), CallSpec("m"), input_bytes=300
    )
    one.body.names, one.media = names_in(document), Media(tokens=blobs)
    one.tiers = OF_METER[meter].exclusions.asked_tiers(document)
    return one


def cached(**lifetime: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "long", "cache_control": {"type": "ephemeral", **lifetime}}]


@pytest.mark.parametrize(
    ("one", "read", "written"),
    [
        (asked(), 8, 40),
        (asked(system=cached()), 10, 40),
        (asked(system=cached(ttl="5m")), 10, 40),
        (asked(system=cached(ttl="1h")), 16, 40),
        (asked(speed="fast"), 16, 80),
        (asked(speed="standard", service_tier="auto", inference_geo="global"), 8, 40),
        (asked(inference_geo="us"), 8.8, 44),
        (asked("openai_chat", service_tier="priority"), 24, 120),
        (asked("openai_chat", service_tier="auto"), 8, 40),
        (asked("gemini_generate", serviceTier="SERVICE_TIER_PRIORITY"), 24, 120),
    ],
)
def test_a_price_is_dear_only_where_a_field_asks_for_it(one: CallRequest, read: float, written: int) -> None:
    """What the call could cost at most is as dear as it may be, whatever it asks for."""
    claim = budget_claim([CACHED], OPEN, one)
    assert claim.money == 100 * read + 200 * written
    assert claim.money_most >= claim.money
    assert claim.dearest is not None
    assert claim.likely is not None
    assert claim.dearest.output >= claim.likely.output == written * MILLION


def test_a_picture_is_held_at_its_price_and_text_is_not() -> None:
    pictures = CACHED._replace(prices=(*CACHED.prices[:8], 90 * MILLION, CACHED.prices[9]))
    text, picture = asked(), asked(blobs=50)
    assert budget_claim([pictures], OPEN, text).money == 100 * 8 + 200 * 40
    assert budget_claim([pictures], OPEN, picture).money == 150 * 90 + 150 * 40


def test_input_is_held_at_the_part_of_its_price_that_was_learned() -> None:
    claim = budget_claim([CACHED], replace(OPEN, input_share=0.25), asked())
    assert claim.money == 100 * 2 + 200 * 40
    assert claim.money_most == budget_claim([CACHED], OPEN, asked()).money_most


def test_a_budget_may_hold_the_maximum_of_all_or_what_is_likely_under_a_strict_plan() -> None:
    """What a strict plan holds is the larger of both amounts: where they are equal it has no say."""
    plain = budget_claim([price(2, 5)], OPEN, call())
    most = budget_claim([price(2, 5)], OPEN, call(), "maximum")
    assert (most.money, most.money_most, most.budget_tokens, most.budget_tokens_most) == (
        plain.money_most, plain.money_most, plain.budget_tokens_most, plain.budget_tokens_most,
    )  # fmt: skip
    assert budget_bound(most, call(), OPEN, held(most.money, 1_150), MONEY | TOKENS) == 1_000
    likely = budget_claim([price(2, 5)], OPEN, call(), "likely")
    assert (likely.money, likely.money_most, likely.budget_tokens_most) == (
        plain.money,
        plain.money,
        plain.budget_tokens,
    )
    assert budget_bound(likely, call(), OPEN, held(likely.money, 300), MONEY | TOKENS) is None


def test_what_only_counts_binds_nothing() -> None:
    claim = budget_claim([price(2, 5)], OPEN, call())
    assert budget_bound(claim, call(), OPEN, held(claim.money_least, 160), frozenset()) is None
    assert budget_bound(claim, call(), OPEN, held(claim.money_least, 300), TOKENS) is None


@given(
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.integers(1, 10_000),
    st.integers(0, 5_000),
    st.integers(1, 4),
    st.integers(1, 4_000),
)
def test_an_answer_within_its_bound_never_costs_more_than_is_held(  # noqa: PLR0917  # a call, drawn
    read_price: int, write_price: int, read: int, output: int, choices: int, used: int
) -> None:
    """The input at its worst, and each choice as long as it may be."""
    estimate = Estimate(read + output, read + 9_000 * choices, read + choices, read)
    one, vector = call(choices, read * 2), price(read_price, write_price)
    claim = budget_claim([vector], estimate, one)
    least, most = claim.money_least, claim.money_most
    for money in {least, (least + most) // 2, most} - {claim.money}:
        bound = budget_bound(claim, one, estimate, held(money), MONEY)
        if bound is not None and money >= read * read_price + choices * write_price:
            counts = [0] * len(KINDS)
            counts[0], counts[KINDS.index("output")] = read, min(used, bound) * choices
            assert cost_nano(vector, counts) <= money


def test_a_rate_pays_as_many_tokens_as_its_money_covers() -> None:
    rate = TokenRate(100, 2 * MILLION, 5 * MILLION, fixed=7, in_money=True)
    for nano in (0, 7, 8, 106, 207, 208, 212, 1_207):
        tokens = rate.paid(nano)
        assert rate.charge_for(tokens) <= nano or tokens == 0
        assert rate.charge_for(tokens + 1) > nano
    assert replace(rate, output=0).paid(300) > 10**12
