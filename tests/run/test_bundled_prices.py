"""The bundled list says of every call what its library says, to the nano-unit.

Where the two differ by rule, and not by accident: the library refuses counts whose parts exceed their
whole, and audio in a cache without a count of its own; here both are charged. Of rates of certain hours the
dearest counts here, and a prompt that Gemini 2.5 searched for is paid once. It knows dates without dashes,
and names by where a word stands in them; those are left out and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from functools import cache
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers

from deploy import price_differences
from deploy.bundled_prices import _spelled, made, written
from deploy.price_differences import (
    AS_OF,
    BELOW,
    HALF_CENT,
    below_makers,
    differences,
    read_own,
    shared_prices,
    sold,
)
from deploy.second_prices import read_table, read_unpriced
from gateway.core.billing.money import NANO
from gateway.core.billing.price_book import (
    FOLLOWS,
    KINDS,
    MATCHES,
    NO_COUNTS,
    PriceBook,
    at_moment,
    choose,
    cost_nano,
    read_price,
    unpriced_names,
)
from gateway.core.billing.sellers import MAKERS, Seller, seller_of
from gateway.core.billing.vector import ModelPrice, Vector
from gateway.run.bundled_prices import LIST, Bundle, read_bundle

NOW = datetime(2026, 11, 20, 2, tzinfo=UTC)  # a Friday, in the dearest hours of the day
NOW_MS = round(NOW.timestamp() * 1000)
FAMILIES = {
    "gpt-5.4": "openai", "gpt-6-sol-2026-09-01": "openai", "text-embedding-3-small": "openai",
    "claude-opus-4-5-20251101": "anthropic", "claude-haiku-5-5": "anthropic", "gemini-2.5-pro": "google",
    "gemini-3.5-flash-001": "google", "mistral-large-latest": "mistral", "deepseek-v4-pro": "deepseek",
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


BEDROCK = "https://bedrock-runtime.eu-west-1.amazonaws.com"


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
    assert price_differences.FILE.read_text() == price_differences.written(made(), made(alone=True))


def test_of_two_prices_the_dearer_counts_but_for_one_with_a_date_or_a_page() -> None:
    """Each difference has a reason that the file explains, and the price that the reason says."""
    found = list(differences(made(), made(alone=True)))
    reasons = {one.key: one for one in price_differences.REASONS}
    assert len([*shared_prices(made(), made(alone=True))]) > 600
    for one in found:
        first, second = Decimal(one.first), Decimal(one.second)
        counts = "first" if one.reason == "dated" else reasons[one.reason].counts
        assert Decimal(one.ours) == {"first": first, "second": second}.get(counts, max(first, second)), one
    assert {one.reason for one in found} >= {"page", "place", "zone", "dearer", "rounded"}


def counts(used: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(used.get(kind, 0) for kind in KINDS)


def fitting(provider: str, used: Mapping[str, int]) -> Mapping[str, int]:
    """The same in kinds that the library knows: of others than Anthropic no longer lifetime of a cache."""
    if provider == "anthropic" or "cache_write_1h" not in used:
        return used
    return {**used, "cache_write": used["cache_write"] + used["cache_write_1h"], "cache_write_1h": 0}


def searches(vector: Vector, queries: int) -> int:
    return min(queries, 1) if "web_search_prompt" in vector.tools else queries


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("used", USAGES)
def test_recorded_usages_cost_what_the_library_says(model: str, used: Mapping[str, int]) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    used = fitting(FAMILIES[model], used)
    said = theirs(model, used, searches(vector, SEARCHES), provider_id=FAMILIES[model])
    assert cost_nano(vector, counts(used), {"web_search": SEARCHES}) == said


@pytest.mark.parametrize(
    ("model", "tier", "context"),
    [
        ("claude-opus-5-5", "batch", {"processing": "batch"}),
        ("gpt-6-sol", "priority", {"service_tier": "priority"}),
        ("gpt-6-sol", "flex", {"service_tier": "flex"}),
        ("gemini-4-argon", "batch", {"processing": "batch"}),
        ("claude-opus-5", "fast", {"speed": "fast"}),
        ("gpt-4o", "batch", {"processing": "batch"}),
        ("gemini-2.5-pro", "batch", {"processing": "batch"}),
        ("gpt-5.4", "flex", {"service_tier": "flex"}),
        ("gpt-5.4", "priority", {"service_tier": "priority"}),
        ("o4-mini", "priority", {"service_tier": "priority"}),
    ],
)
@pytest.mark.parametrize("used", USAGES)
def test_service_tiers_cost_what_the_library_says(
    model: str, tier: str, context: dict[str, str], used: Mapping[str, int]
) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    assert (tier in vector.service_tiers) != (tier in vector.tiers)
    used = fitting("anthropic" if "claude" in model else "", used)
    ours = cost_nano(vector, counts(used), {"web_search": SEARCHES}, tier)
    assert ours == theirs(model, used, searches(vector, SEARCHES), price_context=context)


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
    found = differences(made(), made(alone=True))
    apart = {(one.provider, one.name) for one in found if one.ours != one.first}
    cached = {(row["provider"], row["model"]) for row in made(alone=True).rows if "cache_read" in row}
    compared = 0
    for (provider, name), model in named.items():
        if model in partly or (provider, name) in apart:
            continue
        used["cache_read"] = 1_001 if (provider, name) in cached else 0  # else the second table may say more
        chosen = choose(prices(), _whole(name), "USD", NOW_MS, provider)
        assert chosen is not None, (provider, name)
        said = theirs(_whole(name), used, searches(chosen.vector, 3), provider_id=provider)
        vector = chosen.vector if chosen.vector.hours is None else at_moment(chosen.vector, NOW_MS)
        assert cost_nano(vector, counts(used), {"web_search": 3}) == said, (provider, name)
        compared += 1
    assert compared > 400


def test_deepseek_costs_twice_in_its_peaks_but_for_weekends_and_holidays() -> None:
    """133 of the 168 hours of a week cost half; 1 October 2026 is a holiday, and a Thursday."""
    book, million = PriceBook(prices()), counts({"input": 1_000_000, "output": 1_000_000})

    def cost(model: str, moment: datetime) -> int:
        vector = book.vector(model, "USD", moment.timestamp() * 1000)
        assert vector is not None
        return cost_nano(vector, million)

    monday = datetime(2026, 11, 30, tzinfo=UTC)
    week = [cost("deepseek-v4-pro", monday + timedelta(hours=hour)) for hour in range(168)]
    assert (week.count(2_640_000_000), week.count(5_280_000_000)) == (133, 35)
    assert [hour for hour in range(24) if week[hour] == 5_280_000_000] == [1, 2, 3, 6, 7, 8, 9]
    assert cost("deepseek-v4-flash", datetime(2026, 9, 30, 2, tzinfo=UTC)) == 1_500_000_000
    assert cost("deepseek-v4-flash", datetime(2026, 10, 1, 2, tzinfo=UTC)) == 750_000_000


def _whole(name: str) -> str:
    """A name that the library knows, of a pattern's: the date of a dated one."""
    if name.endswith(("-20", "@20")):
        return f"{name}26-01-01" if name.startswith("gpt-") else f"{name}260101"
    return name


def test_names_that_no_list_prices_are_told_by_name() -> None:
    told = price_differences.FILE.read_text().partition("## Without a price")[2]
    book = PriceBook(prices())
    for provider, _, name in (one.partition(" ") for one in read_unpriced()):
        is_priced = book.vector(name, "USD", NOW_MS, Seller(provider)) is not None
        assert is_priced != (f"`{name}`" in told), (provider, name)


# By hand: a million times the cost of a call in dollars, from the vendors' prices a million tokens.
BY_HAND = (
    ("o4-mini", "flex", {"input": 12_000, "output": 2_800}, 12_000 * 0.55 + 2_800 * 2.2),
    ("o4-mini", "priority", {"input": 12_000, "output": 2_800}, 12_000 * 2 + 2_800 * 8),
    ("gpt-4o-mini", "priority", {"input": 12_000, "output": 800}, 12_000 * 0.25 + 800),
    ("gpt-5.5-pro", "flex", {"input": 12_000, "output": 800}, 12_000 * 15 + 800 * 90),
    ("gpt-4o", "batch", {"input": 10**6, "output": 10**5}, 1_750_000),
    ("gemini-2.5-pro", "batch", {"input": 10**6, "output": 10**5}, 2_000_000),
    ("gemini-2.5-pro", "priority", {"input": 12_000, "output": 800}, 1.8 * (12_000 * 1.25 + 800 * 10)),
    ("gemini-3.5-flash", "flex", {"input": 12_000, "output": 800}, 12_000 * 0.75 + 800 * 4.5),
    ("gpt-6.1-sol", "ultrafast", {"input": 12_000, "output": 2_800}, 6 * (12_000 * 2 + 2_800 * 10)),
    ("gpt-6-sol", "", {"cache_write": 6_000, "cache_write_1h": 6_000}, 6_000 * 2.5 + 6_000 * 5),
    ("gpt-4o-audio-preview-2025-06-03", "",
     {"input": 1_500, "audio_input": 1_400, "output": 900, "audio_output": 700}, 114_250),
    ("gpt-4o-mini-audio-preview", "",
     {"input": 1_500, "audio_input": 1_400, "output": 900, "audio_output": 700}, 28_135),
    ("gemini-2.5-pro", "", {"input": 1_000, "audio_input": 900}, 1_250),
    ("glm-5", "", {"input": 8_000, "cache_read": 4_000, "output": 800}, 11_360),
    ("deepseek-chat", "", {"input": 10_000, "output": 1_000}, 2_800 + 1_100),
    ("gemini-2.5-flash", "flex", {"input": 1_000, "output": 10_100, "reasoning": 10_000},
     1_000 * 0.15 + 10_100 * 1.25),
    ("gemini-3-flash-preview", "flex", {"input": 1_000, "output": 10_100, "reasoning": 10_000},
     1_000 * 0.25 + 10_100 * 1.5),
    ("gemini-3-pro-image", "flex", {"output": 1_300, "image_output": 1_120}, 180 * 6 + 1_120 * 60),
    ("gemini-2.5-flash", "flex", {"input": 900, "audio_input": 900}, 900 * 0.5),
    ("claude-opus-4-5", "batch", {"cache_write_1h": 6_000}, 6_000 * 5),
    # By litellm's table alone.
    ("claude-mythos-5", "batch", {"input": 12_000, "output": 800}, 12_000 * 5 + 800 * 25),
    ("gpt-5-search-api-2025-10-14", "", {"input": 12_000, "output": 800}, 12_000 * 1.25 + 800 * 10),
    ("ft:gpt-4.1-2025-04-14:acme::abc", "", {"input": 12_000, "output": 800}, 12_000 * 3 + 800 * 12),
    ("gpt-4o-transcribe", "", {"input": 1_400, "audio_input": 1_400}, 1_400 * 2.5),
)  # fmt: skip


@pytest.mark.parametrize(("model", "tier", "used", "dollars"), BY_HAND)
def test_what_vendors_bill_beside_the_usual_is_charged(
    model: str, tier: str, used: Mapping[str, int], dollars: float
) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    assert cost_nano(vector, counts(used), {}, tier) == round(dollars * 1_000)
    assert unpriced_names(vector, {}, counts(used), tier) == []


def test_a_cheaper_tier_has_no_kind_that_costs_more_than_usual_and_no_part_more_than_its_share() -> None:
    """A whole that halves halves its parts, but for half a cent by which the lists round."""
    place = {kind: number for number, kind in enumerate(KINDS)}
    cheaper, dearer = 0, []
    for price, row in zip(prices(), bundle().rows, strict=True):
        usual = price.vector.prices
        for tier, here in [(name, table.prices) for name, table in price.vector.tiers.items()]:
            if tier not in {"batch", "flex"}:
                continue
            cheaper += 1
            for kind in KINDS:
                most = usual[place[kind]]
                if kind in FOLLOWS and kind in row and usual[place[FOLLOWS[kind]]]:
                    most = most * here[place[FOLLOWS[kind]]] // usual[place[FOLLOWS[kind]]]
                if here[place[kind]] > most + HALF_CENT * NANO:
                    dearer.append((row["provider"], row["model"], tier, kind))
    assert cheaper > 200
    assert dearer == []


@pytest.mark.parametrize(
    ("model", "used", "nano"),
    [
        ("whisper-1", {"audio_second": 60}, 6_000_000), ("tts-1", {"character": 1_000}, 15_000_000),
        ("mistral-ocr-latest", {"page": 2}, 8_000_000), ("gemini-2.5-flash", {"web_search": 3}, 35_000_000),
        ("gemini-3.5-flash", {"web_search": 3}, 42_000_000),
        # A million tokens in a cache for two hours, at 1.00 and at 4.50.
        ("gemini-2.5-flash-lite", {"cache_hour": 2_000_000}, 2_000_000_000),
        ("gemini-3.1-pro-preview", {"cache_hour": 2_000_000}, 9_000_000_000),
    ],
)  # fmt: skip
def test_units_cost_what_hours_characters_and_prompts_do(
    model: str, used: Mapping[str, int], nano: int
) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    assert (cost_nano(vector, NO_COUNTS, used), unpriced_names(vector, used)) == (nano, [])


@cache
def sellers_book() -> PriceBook:
    return PriceBook(prices())


@pytest.mark.parametrize(
    ("base_url", "family", "model", "nano"),
    [
        (BEDROCK, "bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", 52_800_000),
        (BEDROCK, "bedrock", "amazon.nova-pro-v1:0", 12_160_000),
        (BEDROCK, "bedrock", "openai.gpt-oss-20b", 1_080_000),
        (BEDROCK, "bedrock", "openai.gpt-oss-safeguard-20b", 1_000_000),
        (BEDROCK, "", "anthropic.claude-3-5-sonnet-20241022-v2:0", 48_000_000),
        (BEDROCK, "", "eu.anthropic.claude-opus-5-v1:0", 88_000_000),
        ("https://openrouter.ai/api", "", "anthropic/claude-sonnet-4.5", 48_000_000),
        ("https://x.openai.azure.com", "", "gpt-4o", 38_000_000),
        ("https://europe-west1-aiplatform.googleapis.com", "", "gemini-2.5-pro", 23_000_000),
        ("https://eu.api.openai.com", "", "gpt-4o", 38_000_000),
    ],
)
def test_a_model_has_the_price_of_who_sells_it(base_url: str, family: str, model: str, nano: int) -> None:
    """12,000 read and 800 written; what a seller's list does not name has its maker's price."""
    seller, used = seller_of("", "", family, base_url), counts({"input": 12_000, "output": 800})
    vector = sellers_book().vector(model, "USD", NOW_MS, seller)
    assert seller is not None
    assert vector is not None
    assert cost_nano(vector, used) == nano
    dearer = seller_of(seller.name, "1.1", "", "http://localhost")
    vector = sellers_book().vector(model, "USD", NOW_MS, dearer)
    assert vector is not None
    assert cost_nano(vector, used) * 10 == nano * 11
    assert seller_of("", "", "", "http://localhost:8000") is None


@pytest.mark.parametrize(
    ("model", "nano"), [("openai.gpt-5.4", 1_680_338_000), ("openai.gpt-5.5", 3_360_676_000)]
)
def test_a_long_call_of_bedrock_costs_twice_what_it_reads_and_half_more_what_it_writes(
    model: str, nano: int
) -> None:
    """301,016 read at 5.50 or 11.00, and 1,000 written at 24.75 or 49.50."""
    vector = sellers_book().vector(model, "USD", NOW_MS, Seller("aws"))
    assert vector is not None
    assert cost_nano(vector, counts({"input": 301_016, "output": 1_000})) == nano


# Hosts at which sellers and makers of both sources are asked.
HOSTS = {
    "anthropic": "api.anthropic.com", "aws": "bedrock-runtime.us-east-1.amazonaws.com",
    "azure": "acme.openai.azure.com", "cerebras": "api.cerebras.ai", "cohere": "api.cohere.com",
    "deepseek": "api.deepseek.com", "fireworks": "api.fireworks.ai",
    "google": "generativelanguage.googleapis.com", "google-vertex": "aiplatform.googleapis.com",
    "groq": "api.groq.com", "minimax": "api.minimax.io", "mistral": "api.mistral.ai",
    "moonshotai": "api.moonshot.ai", "novita": "api.novita.ai", "openai": "api.openai.com",
    "openrouter": "openrouter.ai", "perplexity": "api.perplexity.ai", "together": "api.together.xyz",
    "voyageai": "api.voyageai.com", "x-ai": "api.x.ai", "zai": "api.z.ai",
}  # fmt: skip


@pytest.mark.parametrize("provider", HOSTS)
def test_every_name_that_a_list_prices_has_a_price_at_its_host(provider: str) -> None:
    """Names are as calls say them there: the library's ids, and those of the second table."""
    seller = seller_of("", "", "", f"https://{HOSTS[provider]}")
    assert seller is not None
    assert seller.name == provider
    book = PriceBook(prices())
    first = {
        model.id for each in providers if each.id == provider for model in each.models
        if model.is_match(model.id) and any(vars(model.get_prices(NOW)).values())
    }  # fmt: skip
    names = first | {row["model"] for row in bundle().rows if row["provider"] == provider}
    names |= read_table()[1].get(provider, {}).keys()
    assert len(names) > 8
    assert [name for name in sorted(names) if book.vector(name, "USD", NOW_MS, seller) is None] == []


@pytest.mark.parametrize(
    ("base_url", "model", "times"),
    [
        ("https://eu.api.openai.com", "gpt-5.4", 11),
        ("https://eu.api.openai.com", "gpt-5.4-mini-2026-03-17", 11),
        ("https://us.api.openai.com", "gpt-6-sol", 11), ("https://eu.api.openai.com", "gpt-5.2", 10),
        ("https://eu.api.openai.com", "gpt-4o", 10), ("https://eu.api.openai.com", "o3", 10),
        ("https://api.openai.com", "gpt-5.4", 10), ("https://api.openai.com.example.com", "gpt-5.4", 10),
        ("https://europe-west1-aiplatform.googleapis.com", "claude-sonnet-4-5@20250929", 11),
        ("https://aiplatform.eu.rep.googleapis.com", "gemini-3.5-flash", 11),
        ("https://europe-west1-aiplatform.googleapis.com", "gemini-2.5-pro", 10),
        ("https://aiplatform.googleapis.com", "claude-sonnet-4-5@20250929", 10),
    ],
)  # fmt: skip
def test_newer_models_cost_a_tenth_more_at_hosts_in_one_place(base_url: str, model: str, times: int) -> None:
    """A stated factor is all that the place costs more, and an operator's price is what it says."""
    used = counts({"input": 12_000, "cache_read": 700, "output": 800})
    seller, stated = seller_of("", "", "", base_url), seller_of("", "1", "", base_url)
    plain, here, as_stated = (
        sellers_book().vector(model, "USD", NOW_MS, one)
        for one in (None if seller is None else Seller(seller.name), seller, stated)
    )
    assert plain is not None
    assert here is not None
    assert as_stated is not None
    assert cost_nano(here, used) * 10 == cost_nano(plain, used) * times
    assert cost_nano(as_stated, used) == cost_nano(plain, used)
    own = read_price({"request": None, "tools": None, "context_tiers": None, "service_tiers": None,
                      "provider": None, "model": model, "match": "exact", "source": "operator", "id": 1,
                      "currency": "USD", "effective_from": NOW, "input": "1", "output": "2"})  # fmt: skip
    operators = PriceBook([own]).vector(model, "USD", NOW_MS, seller)
    assert operators == own.vector


# Of a thousand tokens read and a thousand written, in dollars, by the pages of OpenAI and Google.
DATED = (
    ("google", "gemini-4-argon", "2026-11-30", "0.012"), ("google", "gemini-4-argon", "2026-12-01", "0.024"),
    ("google-vertex", "gemini-4-argon", "2026-11-30", "0.012"),
    ("google-vertex", "gemini-4-argon", "2026-12-01", "0.024"),
    ("openrouter", "google/gemini-4-argon", "2026-12-01", "0.024"),
    ("openrouter", "google/gemini-4-argon:batch", "2026-12-01", "0.012"),
    ("openrouter", "~google/gemini-pro-latest", "2026-12-01", "0.024"),
    ("perplexity", "gemini-4-argon", "2026-12-01", "0.024"),
    ("github-copilot", "gemini-4-argon", "2026-12-01", "0.024"),
    ("google-vertex", "gemini-3.6-flash", "2026-12-31", "0.0045"),
    ("google-vertex", "gemini-3.6-flash", "2027-01-01", "0.009"),
    ("google-vertex", "gemini-3.7-flash", "2027-01-01", "0.009"),
    ("google-vertex", "gemini-3.8-flash", "2027-01-01", "0.009"),
    ("google-vertex", "gemini-robotics-er-2-preview", "2027-01-01", "0.012"),
    ("quicksilverpro", "gemini-3.8-flash", "2026-12-31", "0.003825"),
    ("quicksilverpro", "gemini-3.8-flash", "2027-01-01", "0.00765"),
    ("", "gpt-6.2-sol", "2026-12-01", "0.012"), ("", "gpt-6.2-astra", "2026-12-01", "0.048"),
    ("", "gpt-6.2-astra-law", "2026-12-01", "0.048"), ("", "gemini-4-neon", "2026-12-01", "0.018"),
    ("", "gemini-4-carbon", "2026-11-30", "0.012"), ("", "gemini-4-carbon", "2026-12-01", "0.024"),
    ("google-vertex", "gemini-4-carbon", "2026-12-01", "0.024"),
)  # fmt: skip


@pytest.mark.parametrize(("provider", "model", "day", "dollars"), DATED)
def test_a_seller_follows_the_dates_of_its_maker_and_models_of_november_have_their_prices(
    provider: str, model: str, day: str, dollars: str
) -> None:
    seller = Seller(provider) if provider else None
    moment_ms = datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC).timestamp() * 1000
    vector = sellers_book().vector(model, "USD", moment_ms, seller)
    assert vector is not None
    assert cost_nano(vector, counts({"input": 1_000, "output": 1_000})) == int(Decimal(dollars) * NANO)


def test_a_seller_keeps_own_kinds_of_price_when_the_maker_becomes_dearer() -> None:
    """OpenRouter's own price of writes to a cache, 0.1875 a million; Google has none."""
    moment_ms = datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1000
    vector = sellers_book().vector("google/gemini-4-argon", "USD", moment_ms, Seller("openrouter"))
    assert vector is not None
    assert cost_nano(vector, counts({"cache_read": 10**6, "cache_write": 10**6})) == 387_500_000


def test_no_seller_is_below_a_maker_at_any_date_without_a_reason() -> None:
    found = list(below_makers(bundle().rows))
    assert [(one.provider, one.name, one.prices) for one in found if not one.reason] == []
    assert {one.reason for one in found} == {one.key for one in BELOW}
    assert len([*sold(bundle().rows)]) > 1_000
    # Without the dates that sellers take over, Argon is below at each.
    undated = [row for row in bundle().rows if row["effective_from"] <= AS_OF or row["provider"] in MAKERS]
    argon = {one.provider for one in below_makers(undated) if "argon" in one.name and not one.reason}
    assert argon == {"github-copilot", "google-vertex", "openrouter"}


@pytest.mark.parametrize(("day", "dollars"), [("2027-02-28", 3 * (4 + 15)), ("2027-03-01", 6 * (4 + 15))])
def test_ultrafast_of_gpt_6_2_sol_costs_twice_as_much_from_march_on(day: str, dollars: int) -> None:
    """A million tokens read and a million written; beyond 272,000 they cost 4 and 15."""
    moment_ms = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000
    vector = sellers_book().vector("gpt-6.2-sol", "USD", moment_ms)
    assert vector is not None
    assert cost_nano(vector, counts({"input": 10**6, "output": 10**6}), {}, "ultrafast") == dollars * NANO


def test_an_own_price_names_its_page_and_is_of_a_name_that_no_library_prices() -> None:
    """Once a library has it, the entry goes."""
    named = {(row["provider"], row["model"]) for row in made(alone=True).rows}
    named |= {(provider, name) for provider, names in read_table()[1].items() for name in names}
    for one in read_own():
        assert (one["provider"], one["model"]) not in named
        assert one["page"].startswith("https://")
        assert date.fromisoformat(one["read"]) >= date(2026, 12, 1)
        assert ("prices" in one) != ("without" in one)


@pytest.mark.parametrize("model", ["gemini-4-argon", "gemini-2.5-flash-image", "gemini-3.8-live", "gpt-5.4"])
def test_a_model_without_a_cache_of_its_callers_has_no_price_of_one(model: str) -> None:
    vector = PriceBook(prices()).vector(model, "USD", NOW_MS)
    assert vector is not None
    assert unpriced_names(vector, {"cache_hour": 1}) == ["cache_hour"]


def test_what_a_seller_bills_is_a_price_of_nobody_else() -> None:
    for model in ("amazon.nova-pro-v1:0", "anthropic/claude-sonnet-4.5"):
        assert sellers_book().vector(model, "USD", NOW_MS) is None
        assert sellers_book().vector(model, "USD", NOW_MS, Seller("groq")) is None


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
    for word in ("hours of the day", "input_text_messages_kcount", "further on", "mistral/eu"):
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
