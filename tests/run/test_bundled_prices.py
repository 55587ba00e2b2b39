"""The bundled list says of every call what its library says, to the nano-unit.

Where the two differ by rule, and not by accident: the library refuses counts whose parts exceed their
whole, and audio in a cache without a count of its own; here both are charged. It knows rates of certain
hours, dates without dashes, and names by where a word stands in them; those are left out and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from functools import cache
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers

from deploy.bundled_prices import _spelled, made, written
from gateway.core.billing.money import NANO
from gateway.core.billing.price_book import KINDS, MAKERS, MATCHES, PriceBook, choose, cost_nano, read_price
from gateway.core.billing.vector import ModelPrice
from gateway.run.bundled_prices import LIST, Bundle, read_bundle

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)
FAMILIES = {
    "gpt-5.4": "openai", "gpt-6-sol-2026-09-01": "openai", "text-embedding-3-small": "openai",
    "claude-opus-4-5-20251101": "anthropic", "claude-haiku-5-5": "anthropic", "gemini-2.5-pro": "google",
    "gemini-3.5-flash-001": "google", "mistral-large-latest": "mistral", "deepseek-chat": "deepseek",
    "grok-4.5": "x-ai", "command-r-plus": "cohere", "kimi-k2-0905-preview": "moonshotai",
    "MiniMax-M2": "minimax",
}  # fmt: skip
USAGES: tuple[Mapping[str, int], ...] = (
    {"input": 12, "output": 7},
    {"input": 3, "cache_read": 180_000, "cache_write": 5_000, "cache_write_1h": 15_000, "output": 500},
    {"input": 199_999, "output": 1},
    {"input": 300_001, "cache_read": 77, "output": 12_345, "reasoning": 12_000},
    {"input": 1_048_576, "output": 65_536, "reasoning": 65_536},
)
SEARCHES = 7


@cache
def bundle() -> Bundle:
    return read_bundle()


@cache
def prices() -> tuple[ModelPrice, ...]:
    return tuple(read_price({"request": None, "tools": None, "context_tiers": None, "service_tiers": None,
                             **row, "id": number}) for number, row in enumerate(bundle().rows))  # fmt: skip


def theirs(model: str, used: Mapping[str, int], searches: int, **more: Any) -> int:
    """What the library makes of it, in nano-units rounded half up."""
    of = dict.fromkeys(KINDS, 0) | dict(used)
    usage = Usage(
        input_tokens=of["input"] + of["cache_read"] + of["cache_write"] + of["cache_write_1h"],
        cache_read_tokens=of["cache_read"],
        cache_write_tokens=of["cache_write"] + of["cache_write_1h"],
        cache_write_1h_tokens=of["cache_write_1h"],
        output_tokens=of["output"],
        output_reasoning_tokens=of["reasoning"],
        input_audio_tokens=of["audio_input"],
        output_audio_tokens=of["audio_output"],
        input_image_tokens=of["image_input"],
        output_image_tokens=of["image_output"],
        cache_audio_read_tokens=0, cache_audio_write_tokens=0, cache_image_read_tokens=0,
        web_searches=searches,
    )  # fmt: skip
    with localcontext() as context:
        context.prec = 60
        total = calc_price(usage, model, genai_request_timestamp=NOW, **more).total_price
        return int((total * NANO).quantize(Decimal(1), ROUND_HALF_UP))


def test_the_list_is_that_of_the_locked_library() -> None:
    """`make prices` writes it."""
    assert read_bundle() == made()
    assert LIST.read_text() == written(made())


def counts(used: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(used.get(kind, 0) for kind in KINDS)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("used", USAGES)
def test_recorded_usages_cost_what_the_library_says(model: str, used: Mapping[str, int]) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    said = theirs(model, used, SEARCHES, provider_id=FAMILIES[model])
    assert cost_nano(vector, counts(used), {"web_search": SEARCHES}) == said


@pytest.mark.parametrize(
    ("model", "tier", "context"),
    [
        ("claude-opus-5-5", "batch", {"processing": "batch"}),
        ("gpt-6-sol", "priority", {"service_tier": "priority"}),
        ("gpt-6-sol", "flex", {"service_tier": "flex"}),
        ("gemini-4-argon", "batch", {"processing": "batch"}),
        ("claude-opus-5", "fast", {"speed": "fast"}),
    ],
)
@pytest.mark.parametrize("used", USAGES)
def test_service_tiers_cost_what_the_library_says(
    model: str, tier: str, context: dict[str, str], used: Mapping[str, int]
) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    assert tier in vector.service_tiers
    ours = cost_nano(vector, counts(used), {"web_search": SEARCHES}, tier)
    assert ours == theirs(model, used, SEARCHES, price_context=context)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("claude-opus-4-6", True), ("claude-sonnet-4.6", True), ("claude-4-7-opus-20260101", True),
        ("claude-opus-5-20260401", True), ("claude-haiku-5-5", True), ("claude-opus-4-5", False),
        ("claude-opus-4-20250514", False), ("claude-haiku-4-5-20251001", False), ("claude-3-opus", False),
    ],
)  # fmt: skip
def test_inference_in_the_us_costs_a_tenth_more_from_the_version_on_that_has_it(
    model: str, more: bool
) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    used = counts({"input": 1_000_000, "cache_read": 1_000_000, "output": 1_000_000})
    assert cost_nano(vector, used, {}, "us") * 10 == cost_nano(vector, used) * (11 if more else 10)


PARTLY = ("prices of", "hours of the day")  # what a row cannot say, so that its costs may differ


def test_every_row_costs_what_the_library_says() -> None:
    """Of each maker, at each time anything changes."""
    partly = {line.split(":")[0] for line in bundle().left_out if any(word in line for word in PARTLY)}
    named = {
        (provider.id, name): f"{provider.id} {model.id}"
        for provider in providers if provider.id in MAKERS
        for model in provider.models
        for name in [row["model"] for row in bundle().rows if row["provider"] == provider.id]
        if model is provider.find_model(_whole(name))
    }  # fmt: skip
    used = {"input": 250_007, "cache_read": 1_001, "output": 5_003, "reasoning": 17}
    compared = 0
    for (provider, name), model in named.items():
        if model in partly:
            continue
        chosen = choose(prices(), _whole(name), "USD", NOW_MS, provider)
        assert chosen is not None, (provider, name)
        said = theirs(_whole(name), used, 3, provider_id=provider)
        assert cost_nano(chosen.vector, counts(used), {"web_search": 3}) == said, (provider, name)
        compared += 1
    assert compared > 400


def _whole(name: str) -> str:
    """A name that the library knows, of a pattern's: the date of a dated one."""
    if name.endswith(("-20", "@20")):
        return f"{name}26-01-01" if name.startswith("gpt-") else f"{name}260101"
    return name


def test_rows_are_what_the_api_takes_and_no_two_are_for_the_same() -> None:
    seen = {
        (row["provider"], row["model"], row["match"], row["currency"], row["effective_from"])
        for row in bundle().rows
    }
    assert len(seen) == len(bundle().rows) > 4_000
    assert {row["match"] for row in bundle().rows} == set(MATCHES)
    assert all(row["source"] == "bundled" for row in bundle().rows)


def test_what_cannot_be_said_is_told() -> None:
    told = "\n".join(bundle().left_out)
    for word in ("hours of the day", "prices of audio_hours", "no one factor", "further on", "mistral/eu"):
        assert word in told


@pytest.mark.parametrize(
    ("regex", "names"),
    [
        (r"^gpt-6\.1-sol-\d{4}-\d{2}-\d{2}$", [("prefix", "gpt-6.1-sol-20")]),
        (r"^claude-opus-5[-@]\d{8}$", [("prefix", "claude-opus-5-20"), ("prefix", "claude-opus-5@20")]),
        (r"^gemini-4-argon-\d", [("prefix", f"gemini-4-argon-{digit}") for digit in range(10)]),
        (r"^composer-2\.5\[fast=true\]$", [("exact", "composer-2.5[fast=true]")]),
        (r"^(typesafe/)?jev-1\.13(-\d{8})?$", []),
        (r"^(?!.*-tts)", []),
    ],
)
def test_a_regular_expression_is_read_where_it_is_a_name(regex: str, names: list[tuple[str, str]]) -> None:
    assert list(_spelled(regex)) == names
