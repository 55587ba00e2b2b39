"""What a call costs, to the nano-unit: by hand, and against a second calculation that shares nothing."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.money import NANO
from gateway.core.billing.price_book import (
    FREE_TOOLS,
    KINDS,
    NO_COUNTS,
    PriceQualifiers,
    converted,
    cost_nano,
    dearest_rate,
    lines,
    money,
    read_price,
    unpriced_names,
)
from gateway.core.billing.vector import ExchangeRate, ModelPrice, Vector
from tests.core.billing.prices import price_row

OPUS = price_row(
    input="5", cache_read="0.5", cache_write="6.25", cache_write_1h="10", output="25",
    tools={"web_search": "10"}, service_tiers={"batch": "0.5", "fast": "2"},
)  # fmt: skip


def counts(**of: int) -> tuple[int, ...]:
    return tuple(of.get(kind, 0) for kind in KINDS)


def vector(row: dict[str, Any]) -> Vector:
    return read_price(row).vector


def test_a_call_that_wrote_and_read_a_cache_and_searched_is_charged_for_each() -> None:
    used = counts(input=3, cache_read=180_000, cache_write=5_000, cache_write_1h=15_000, output=500)
    assert cost_nano(vector(OPUS), used, {"web_search": 7}, "priority") == 353_765_000


def test_a_service_tier_is_a_factor_on_tokens_and_the_call_but_not_on_tools() -> None:
    row = {**OPUS, "request": Decimal("0.01")}
    used = counts(input=1_000_000, output=200_000)
    assert cost_nano(vector(row), used, {"web_search": 100}) == (5 + 5 + 1) * NANO + NANO // 100
    assert cost_nano(vector(row), used, {"web_search": 100}, "batch") == (5 + 1) * NANO + NANO // 200


@pytest.mark.parametrize(
    ("read", "nano"), [(200_000, 600_000_000), (200_001, 1_200_006_000), (500_001, 6_000_012_000)]
)
def test_above_a_context_tier_the_whole_call_has_its_prices(read: int, nano: int) -> None:
    row = price_row(
        input="3", output="15",
        context_tiers=[{"above": 200_000, "input": "6"}, {"above": 500_000, "input": "12", "output": "30"}],
    )  # fmt: skip
    assert cost_nano(vector(row), counts(input=1, cache_read=read - 1)) == nano


def test_a_kind_that_a_context_tier_does_not_name_keeps_the_base_price() -> None:
    tiers = [{"above": 10, "input": "6"}, {"above": 20, "output": "30"}]
    made = vector(price_row(input="3", output="15", context_tiers=tiers))
    assert [prices[0] // NANO for _, prices in made.context_tiers] == [6, 3]
    assert [prices[4] // NANO for _, prices in made.context_tiers] == [15, 30]


def test_a_tier_moves_a_part_that_it_leaves_out_as_far_as_its_whole() -> None:
    """By hand: `input` and `cache_write` halve, `output` trebles, and doubles once more in a long call."""
    row = price_row(
        input="2", cache_read="0.2", cache_write="4", cache_write_1h="10", output="3", reasoning="3",
        audio_input="7", image_input="1", audio_output="6", image_output="60",
        service_tiers={"other": {"input": "1", "cache_write": "2", "output": "9", "image_input": "5",
                                 "context_tiers": [{"above": 9, "output": "18", "audio_output": "1"}]}},
    )  # fmt: skip
    tier = vector(row).tiers["other"]
    usual = [2, 0.2, 4, 10, 3, 3, 7, 6, 1, 60]
    assert [price / NANO for price in vector(row).prices] == usual
    assert [price / NANO for price in tier.prices] == [1, 0.2, 2, 5, 9, 9, 3.5, 18, 5, 180]
    assert [price / NANO for price in tier.context_tiers[0][1]] == [1, 0.2, 2, 5, 18, 18, 3.5, 1, 5, 360]


def test_a_tier_keeps_the_price_of_a_part_whose_whole_it_leaves_out_or_is_free() -> None:
    kept = price_row(input="0", output="3", audio_input="7", reasoning="5",
                     service_tiers={"flex": {"input": "1"}})  # fmt: skip
    prices = vector(kept).tiers["flex"].prices
    assert (prices[KINDS.index("audio_input")], prices[KINDS.index("reasoning")]) == (7 * NANO, 5 * NANO)


@pytest.mark.parametrize(
    ("kind", "falls_back_to"),
    [
        ("cache_read", "input"), ("cache_write", "input"), ("cache_write_1h", "cache_write"),
        ("audio_input", "input"), ("image_input", "input"), ("reasoning", "output"),
        ("audio_output", "output"), ("image_output", "output"),
    ],
)  # fmt: skip
def test_a_kind_without_a_price_costs_what_it_falls_back_to(kind: str, falls_back_to: str) -> None:
    own = {"input": "1", "cache_write": "2", "output": "3"}
    own.pop(kind, None)
    prices = vector(price_row(**own)).prices
    assert prices[KINDS.index(kind)] == int(own[falls_back_to]) * NANO


def test_parts_are_not_charged_twice_and_more_parts_than_their_whole_are_all_charged() -> None:
    row = price_row(input="1", output="10", audio_input="100", reasoning="20")
    assert cost_nano(vector(row), counts(input=5, audio_input=2, output=4, reasoning=4)) == 283_000
    assert cost_nano(vector(row), counts(input=1, audio_input=2)) == 200_000


@pytest.mark.parametrize(("tokens", "nano"), [(1, 0), (2, 1), (3, 1), (499, 125), (500, 125), (502, 126)])
def test_a_call_is_rounded_half_up_once(tokens: int, nano: int) -> None:
    assert cost_nano(vector(price_row(input="0.00025")), counts(input=tokens)) == nano


def test_what_a_price_does_not_name_costs_nothing_more() -> None:
    assert cost_nano(vector(OPUS), counts(), {"code_execution": 9}, "flex") == 0
    assert lines(vector(OPUS), counts(), {"code_execution": 9}, "flex") == []


def test_a_price_survives_its_way_to_the_gateway() -> None:
    price = read_price({**OPUS, "context_tiers": [{"above": 9, "input": "1"}]})
    assert msgspec.json.decode(msgspec.json.encode(price), type=ModelPrice) == price


# --- against a second calculation -------------------------------------------------------

money_text = st.decimals(0, 10**6, places=9).map(str)
some_counts = st.lists(st.integers(0, 10**8), min_size=10, max_size=10).map(tuple)
steps = st.lists(
    st.fixed_dictionaries({"above": st.integers(0, 10**8)}, optional=dict.fromkeys(KINDS, money_text)),
    max_size=3,
    unique_by=lambda tier: tier["above"],
).map(lambda tiers: sorted(tiers, key=lambda tier: tier["above"]))
tables = st.fixed_dictionaries({}, optional={**dict.fromkeys(KINDS, money_text), "context_tiers": steps})
rows = st.fixed_dictionaries(
    {"input": money_text},
    optional={
        **dict.fromkeys((*KINDS[1:], "request"), money_text),
        "tools": st.dictionaries(
            st.sampled_from(["web_search", "web_search_prompt", "file_search"]), money_text
        ),
        "service_tiers": st.fixed_dictionaries(
            {}, optional={"batch": money_text | tables, "flex": money_text | tables, "us": money_text}
        ),
        "context_tiers": steps,
    },
)


# What may answer: a place of inference stands behind any other tier.
TIERS = ["", "batch", "flex", "us", "batch/us", "flex/us"]


def moved(usual: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Prices in a table: a part that it leaves out moves as far as its whole, to the billionth."""
    found = {**usual, **table}
    for whole, part in (
        ("cache_write", "cache_write_1h"), ("input", "audio_input"), ("input", "image_input"),
        ("output", "reasoning"), ("output", "audio_output"), ("output", "image_output"),
    ):  # fmt: skip
        if part in usual and part not in table and whole in table and Fraction(usual.get(whole, 0)):
            exact = Fraction(usual[part]) * Fraction(table[whole]) / Fraction(usual[whole])
            found[part] = str(Fraction(math.floor(exact * NANO + Fraction(1, 2)), NANO))
    return found


PARTS = {
    "input": ("cache_read", "cache_write", "cache_write_1h", "audio_input", "image_input"),
    "output": ("reasoning", "audio_output", "image_output"),
}


def by_hand(row: dict[str, Any], used: tuple[int, ...], tools: dict[str, int], tier: str) -> Fraction:
    """The same from the words of the contract, kind by kind, in fractions."""
    of = dict(zip(KINDS, used, strict=True))
    name, _, place = tier.partition("/")
    said = row.get("service_tiers", {}).get(name, "1")
    table, factor = (said, "1") if isinstance(said, dict) else ({}, said)
    base = price = moved(row, table)
    for step in (table if isinstance(said, dict) else row).get("context_tiers", ()):
        if of["input"] + of["cache_read"] + of["cache_write"] + of["cache_write_1h"] > step["above"]:
            price = moved(base, step) if isinstance(said, dict) else {**base, **step}

    # A whole without a price costs as its dearest part that has one.
    price = dict(price)
    for whole, parts_of in PARTS.items():
        named = [Fraction(price[part]) for part in parts_of if part in price]
        if whole not in price and named:
            price[whole] = max(named)

    def rate(*chain: str) -> Fraction:
        return Fraction(next((price[kind] for kind in chain if kind in price), "0")) / 10**6

    inputs = {"audio_input": rate("audio_input", "input"), "image_input": rate("image_input", "input")}
    outputs = {kind: rate(kind, "output") for kind in ("reasoning", "audio_output", "image_output")}
    total = Fraction(row.get("request", "0"))
    total += of["cache_read"] * rate("cache_read", "input")
    total += of["cache_write"] * rate("cache_write", "input")
    total += of["cache_write_1h"] * rate("cache_write_1h", "cache_write", "input")
    for whole, parts in (("input", inputs), ("output", outputs)):
        total += max(0, of[whole] - sum(of[part] for part in parts)) * rate(whole)
        total += sum(of[part] * each for part, each in parts.items())
    total *= Fraction(factor) * Fraction(row.get("service_tiers", {}).get(place, "1"))
    paid = dict(tools)
    if "web_search" not in row.get("tools", {}):
        paid["web_search_prompt"] = 1 if tools.get("web_search") else 0
    return total + sum(
        uses * Fraction(row.get("tools", {}).get(name, "0")) / 1000 for name, uses in paid.items()
    )


def test_a_tool_that_a_price_does_not_name_is_unpriced_but_for_those_that_cost_nothing() -> None:
    made = vector(price_row(tools={"web_search": "10", "shell": "0"}))
    used = {"web_search": 1, "shell": 1, "image_generation": 3, "google_maps": 1, "code_interpreter": 0}
    assert unpriced_names(made, used | dict.fromkeys(FREE_TOOLS, 1)) == ["image_generation", "google_maps"]


@pytest.mark.parametrize(
    ("named", "tier", "sound", "nano"),
    [
        # 273 x 0.1 + 9,727 x 0.03 + 100 x 0.4 dollars a million: 27,300 + 291,810 + 40,000.
        ({"cache_audio": "0.03"}, "", 9_727, 359_110),
        ({"cache_audio": "0.03"}, "flex", 9_727, 179_555),
        # 5,000 of the cached tokens are text: 27,300 + 141,810 + 50,000 + 40,000.
        ({"cache_audio": "0.03"}, "", 4_727, 259_110),
        # A table that doubles `cache_read` doubles cached sound: 27,300 + 583,620 + 40,000.
        ({"cache_audio": "0.03"}, "priority", 9_727, 650_920),
        # No more than was read from the cache.
        ({"cache_audio": "0.03"}, "", 20_000, 359_110),
        # Without a price of its own it costs what cached text does: 27,300 + 97,270 + 40,000.
        ({}, "", 9_727, 164_570),
    ],
)
def test_cached_sound_costs_its_own_price(named: dict[str, str], tier: str, sound: int, nano: int) -> None:
    tiers = {"flex": "0.5", "priority": {"cache_read": "0.02"}}
    made = vector(price_row(input="0.1", cache_read="0.01", output="0.4", service_tiers=tiers, **named))
    counts, tools = (273, 9_727, 0, 0, 100, 0, 0, 0, 0, 0), {"cache_audio": sound}
    assert cost_nano(made, counts, tools, tier) == nano
    assert sum(line.amount for line in lines(made, counts, tools, tier)) * 10**9 == nano
    assert unpriced_names(made, tools, counts, tier) == []


def test_a_price_of_each_request_covers_its_searches() -> None:
    assert unpriced_names(vector(price_row(input="1", output="1", request="0.014")), {"web_search": 2}) == []
    assert unpriced_names(vector(price_row(input="1", output="1")), {"web_search": 2}) == ["web_search"]


def test_kinds_and_tiers_that_a_price_does_not_name_are_unpriced() -> None:
    bare = vector(price_row(input="1", output="2", service_tiers={"flex": "0.5", "batch": {"input": "1"}}))
    counts = tuple(range(10))
    assert unpriced_names(bare, {}, counts, "priority") == [
        "audio_input", "audio_output", "image_output", "service_tier.priority"
    ]  # fmt: skip
    assert unpriced_names(bare, {}, NO_COUNTS, "flex") == unpriced_names(bare, {}, NO_COUNTS, "batch") == []
    assert all(unpriced_names(bare, {}, NO_COUNTS, tier) == [] for tier in ("", "default", "standard"))
    heard = vector(price_row(input="1", output="2", audio_input="1", audio_output="9", image_output="0"))
    assert (
        unpriced_names(heard, {}, counts)
        == unpriced_names(vector(price_row(input="0", output="0")), {}, counts)
        == []
    )


@given(row=rows, used=some_counts, tier=st.sampled_from(TIERS))
def test_the_dearest_rate_is_no_less_than_any_tier_that_may_answer(
    row: dict[str, Any], used: tuple[int, ...], tier: str
) -> None:
    made = vector(price_row(**row))
    read = used[0] + used[1] + used[2] + used[3]
    parts = (0,) * 5
    for given_, asks in ((tier, PriceQualifiers()), ("", PriceQualifiers(tiers=()))):
        rate = dearest_rate([made], read, asks, in_money=True)
        assert rate.cost(read, used[4]) >= cost_nano(made, (*used[:5], *parts), tier=given_)
        krone = converted(made, ExchangeRate("DKK", "USD", "6.87", 0))
        rate = dearest_rate([krone], read, asks, in_money=True)
        assert rate.cost(read, used[4]) >= cost_nano(krone, (*used[:5], *parts), tier=given_)


@given(
    row=rows, used=some_counts, tier=st.sampled_from(TIERS),
    tools=st.dictionaries(st.sampled_from(["web_search", "other"]), st.integers(0, 10**4)),
)  # fmt: skip
def test_costs_and_their_lines_agree_with_fractions(
    row: dict[str, Any], used: tuple[int, ...], tools: dict[str, int], tier: str
) -> None:
    exact = by_hand(row, used, tools, tier)
    made = vector(price_row(**row))
    with localcontext() as context:
        context.prec = 120
        nano = Decimal(exact.numerator * NANO) / Decimal(exact.denominator)
        cost = cost_nano(made, used, tools, tier)
        assert cost == int(nano.quantize(Decimal(1), ROUND_HALF_UP))
        shown = lines(made, used, tools, tier)
        assert sum(Fraction(line.amount) for line in shown) == exact
        assert money(cost) == Decimal(cost).scaleb(-9)
        for line in shown:
            assert line.amount == line.quantity * line.unit_price / line.per
