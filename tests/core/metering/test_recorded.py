"""Recorded answers of thirteen families are counted and priced as the hand table says, to the nano-dollar.

The table, and the price lists it was made from by hand, use nothing of the product. The library that the
bundled prices come from says the same of all it can say; of what else there is, `BEYOND_LIBRARY` tells why.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import floor
from typing import Any

import pytest
from genai_prices import Usage, calc_price, extract_usage
from genai_prices.data import providers
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.accounts.call_facts import UNKNOWN_BYTES_MAX
from gateway.core.billing.price_book import KINDS, PriceBook, cost_nano, read_price
from gateway.core.calls.call import DEFAULT_BOUNDS, UsageBounds
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from gateway.run.bundled_prices import read_bundle
from tests.core.billing.prices import price_row
from tests.recorded.answers import Answer, Expected, answers, table
from tests.recorded.prices import KINDS as TABLE_KINDS
from tests.recorded.prices import NANO, PRICES, ListPrice
from tests.search import examples

# At midnight no provider's prices of certain hours are in force.
NOW = datetime(2026, 11, 21, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)
# What the library cannot say of an answer, by the beginnings of names.
BEYOND_LIBRARY = {
    "gemini/priority": "no price of this tier",
    "openrouter/search": "no price of this host's searches",
    "xai/responses, searches": "no price of this provider's tools",
    "open-weights/vllm": "no model of the house",
}
# Where the bundled list says another price than the library at that time.
LISTED_OTHERWISE = (
    "deepseek/",  # the dearest of the day's hours counts
    "openai-responses/cache write by lifetime",  # by the second table the longer lifetime has its own price
)
# What the library leaves out where it reads a document itself, by the beginnings of names.
UNREAD = BEYOND_LIBRARY | {
    "anthropic/compaction": "what a compaction took",
    "deepseek/hits and misses alone": "the cache's part, where it stands in no details",
    "moonshot/cache json": "the cache's part, where it stands in no details",
    "moonshot/thinking and cache": "the cache's part, where it stands in no details",
    "gemini/grounding": "searches",
    "gemini/more in all than in parts": "what a total has beyond its parts",
    "openai-responses/web search": "searches",
    "openai-responses/file and web search": "searches",
}
# How it calls the ways in which a provider answers, where that is not `default`.
FLAVORS = {"chat": "chat", "completions": "chat", "responses": "responses", "embeddings": "embeddings"}
# What an answer says of its use beyond what is documented here: the provider's own cost.
SAYS_MORE = ("openrouter/", "xai/its own cost", "xai/responses", "gemini/more in all")


def fed(answer: Answer, *chunks: bytes, bounds: UsageBounds = DEFAULT_BOUNDS) -> Meter:
    """The meter of an answer that came in these chunks."""
    meter = make_meter(answer.call, 200, answer.content_type, bounds=bounds)
    passed = b"".join([*(meter.feed(chunk) for chunk in chunks), meter.finish()])
    assert passed == answer.body
    return meter


def vector(meter: Meter) -> tuple[object, ...]:
    detail = meter.detail
    return (
        dict(zip(KINDS, detail.counts(meter.usage()), strict=True)),
        detail.tools, detail.service_tier, detail.model,
    )  # fmt: skip


def says(expected: Expected) -> tuple[object, ...]:
    return expected.counts, expected.tools, expected.tier, expected.model


def price_of(answer: Answer) -> ListPrice:
    return PRICES[table()[answer.name].model or answer.asked]


@pytest.mark.parametrize("answer", answers(), ids=lambda answer: answer.name)
def test_an_answer_is_what_the_table_says(answer: Answer) -> None:
    """Its counts and cost; byte by byte, beside what no decoder takes, beside a picture; by the library."""
    counted_as_the_table_says(answer)
    costs_what_the_table_says(answer)
    assert (theirs(answer) == table()[answer.name].nano) != beyond(answer)  # else the list is too long
    expect_the_same(answer, *(answer.body[at : at + 1] for at in range(len(answer.body))))
    for odd in IN_TEXT:
        expect_the_same(answer, put_behind(TEXT, odd, answer.body))
    for odd in AS_VALUE:
        expect_the_same(answer, put_behind(OPENED, b'"odd": ' + odd + b",", answer.body))
    for piece in (977, 1 << 20):
        a_picture_changes_nothing(answer, piece)


def counted_as_the_table_says(answer: Answer) -> None:
    expected = table()[answer.name]
    meter = fed(answer, answer.body)
    usage = meter.usage()
    assert vector(meter) == says(expected)
    assert (usage.reported, usage.estimated) == (True, False)
    assert usage.total == sum(list(expected.counts.values())[:5])
    assert meter.detail.says_more == answer.name.startswith(SAYS_MORE)
    assert len(meter.detail.unknown) <= UNKNOWN_BYTES_MAX
    assert bool(meter.detail.unknown) == meter.detail.says_more


def costs_what_the_table_says(answer: Answer) -> None:
    expected, listed = table()[answer.name], price_of(answer)
    by_hand = listed.nano(expected.counts, expected.tools, expected.tier)
    assert expected.nano == floor(by_hand + Fraction(1, 2))
    assert ours(answer, of_the_lists()) == expected.nano
    otherwise = beyond(answer) or answer.name.startswith(LISTED_OTHERWISE)
    if not isinstance(listed.library, str) and listed.library[0] in MAKERS and not otherwise:
        assert ours(answer, bundled()) == expected.nano


def test_the_library_reads_documents_as_we_do() -> None:
    compared = 0
    for answer in answers():
        read = None if answer.mode != "json" else read_by_library(answer)
        if read is None:
            continue
        said = priced_by_library(answer, read)
        if answer.name.startswith(tuple(UNREAD)):
            assert said != table()[answer.name].nano, answer.name  # else the list is too long
        else:
            assert said == table()[answer.name].nano, answer.name
            compared += 1
    assert compared >= 90


@settings(max_examples=examples(300))
@given(st.sampled_from(answers()), st.data())
def test_chunks_change_nothing(answer: Answer, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(answer.body)), max_size=30).map(sorted))
    edges = [0, *places, len(answer.body)]
    chunks = [answer.body[start:end] for start, end in pairwise(edges)]
    assert vector(fed(answer, *chunks)) == says(table()[answer.name])


# What no strict decoder takes: in a text, and as a value.
IN_TEXT = (rb"\ud83d", rb"\ude00\\", b"a\tb", b"\x00", rb"\x", rb"\u12", b"\xff", b'\\"NaN,\\ud83d')
AS_VALUE = (
    b"-Infinity", b"[NaN, Infinity]", b"[" * 1500 + b"]" * 1500, b'{"a":' * 1500 + b"1" + b"}" * 1500,
    rb'"\ud83d"', rb'{"\udfff": "\ud83d\ud83d\ude00"}',
)  # fmt: skip
TEXT = re.compile(rb'("(?:content|text|delta|thinking|reasoning_content|arguments|partial_json)": ?")')
OPENED = re.compile(rb"(\A\[?|data: ?)(\s*+\{)")


def a_picture_changes_nothing(answer: Answer, piece: int) -> None:
    picture = b'"result": "' + b"iVBORw0KGgo+" * 2000 + b'\\u00e9\\\\",'
    body = answer.body
    for match in list(OPENED.finditer(body))[:-3:-1]:  # more would be surplus behind an end
        body = body[: match.end()] + picture + body[match.end() :]
    chunks = [body[at : at + piece] for at in range(0, len(body), piece)]
    meter = fed(
        replace(answer, body=body), *chunks, bounds=UsageBounds(kept_bytes_max=16_384, event_bytes_max=16_384)
    )
    assert vector(meter) == says(table()[answer.name])


def put_behind(place: re.Pattern[bytes], odd: bytes, body: bytes) -> bytes:
    return place.sub(lambda match: match[0] + odd, body)


def expect_the_same(answer: Answer, *chunks: bytes) -> None:
    body = b"".join(chunks)
    meter = fed(replace(answer, body=body), *chunks)
    assert vector(meter) == says(table()[answer.name]), body
    assert (meter.usage().reported, meter.usage().estimated) == (True, False)


def test_the_corpus_has_what_it_promises() -> None:
    names = [answer.name for answer in answers()]
    assert len(names) == len(set(names)) >= 200
    assert set(names) == table().keys()
    assert TABLE_KINDS == KINDS
    modes = {(answer.family, answer.mode) for answer in answers()}
    both = {family for family, _ in modes if {(family, "json"), (family, "sse")} <= modes}
    assert len(both) >= 10
    has = Counter[str]()
    for answer in answers():
        expected = table()[answer.name]
        has.update({kind for kind, count in expected.counts.items() if count})
        has.update(expected.tools.keys() | {expected.tier})
    for feature in (*KINDS, "web_search", "file_search", "flex", "priority", "batch", "fast"):
        assert has[feature], feature
    compared = [answer for answer in answers() if not beyond(answer)]
    assert len(compared) >= 200


# --- two calculations -------------------------------------------------------------------

MAKERS = {"openai", "anthropic", "google", "deepseek", "x-ai", "mistral", "moonshotai", "cohere"}


def beyond(answer: Answer) -> bool:
    return answer.name.startswith(tuple(BEYOND_LIBRARY))


def ours(answer: Answer, book: PriceBook) -> int:
    """What the product makes of what its meter counted."""
    meter = fed(answer, answer.body)
    detail = meter.detail
    price = book.vector(detail.model or answer.asked, "USD", NOW_MS)
    assert price is not None
    return cost_nano(price, detail.counts(meter.usage()), detail.tools, detail.service_tier)


@cache
def of_the_lists() -> PriceBook:
    """The hand-written price lists, as an operator would set them."""
    return PriceBook(
        read_price(price_row(
            model=model, **price.million, tools=price.tools, service_tiers=price.tiers,
            context_tiers=[] if price.over is None else [{"above": price.over[0], **price.over[1]}],
        ))
        for model, price in PRICES.items()
    )  # fmt: skip


@cache
def bundled() -> PriceBook:
    """The bundled list, as a new database has it."""
    return PriceBook(read_price(price_row(id=number, **row)) for number, row in enumerate(read_bundle().rows))


def theirs(answer: Answer) -> int | None:
    """What the library makes of the table's counts, in nano-dollars; None where it knows no such model."""
    expected = table()[answer.name]
    if isinstance(price_of(answer).library, str):
        return None
    of, tools = expected.counts, expected.tools
    used: dict[str, Any] = {
        "input_tokens": of["input"] + of["cache_read"] + of["cache_write"] + of["cache_write_1h"],
        "cache_read_tokens": of["cache_read"],
        "cache_write_tokens": of["cache_write"] + of["cache_write_1h"],
        "cache_write_1h_tokens": of["cache_write_1h"],
        "output_tokens": of["output"],
        "output_reasoning_tokens": of["reasoning"],
        "input_audio_tokens": of["audio_input"],
        "output_audio_tokens": of["audio_output"],
        "input_image_tokens": of["image_input"],
        "output_image_tokens": of["image_output"],
        "cache_audio_read_tokens": tools.get("cache_audio", 0),
        "cache_audio_write_tokens": 0,
        "cache_image_read_tokens": 0,
        "web_searches": tools.get("web_search", 0),
        "storage_searches": tools.get("file_search", 0),
    }
    used["input_audio_tokens"] += used["cache_audio_read_tokens"]
    return priced_by_library(answer, Usage(**used))


def read_by_library(answer: Answer) -> Usage | None:
    """What the library reads of a document; None where it does not know how the provider writes."""
    library = price_of(answer).library
    provider = library[0] if not isinstance(library, str) else ""
    known = {each.api_flavor for one in providers if one.id == provider for each in one.extractors or ()}
    flavor = FLAVORS.get(answer.api, "default")
    flavor = flavor if flavor in known else "default"
    if flavor not in known or provider == "cohere":  # whose compatible API it does not know
        return None
    return extract_usage(json.loads(answer.body), provider_id=provider, api_flavor=flavor).usage


def priced_by_library(answer: Answer, usage: Usage) -> int:
    """What the library makes of a use, in nano-dollars."""
    library = price_of(answer).library
    assert not isinstance(library, str)
    provider, model = library
    with localcontext() as context:
        context.prec = 60
        price = calc_price(
            usage, model, provider_id=provider, genai_request_timestamp=NOW,
            price_context=CONTEXTS.get(table()[answer.name].tier),
        )  # fmt: skip
        return int((price.total_price * NANO).quantize(Decimal(1), ROUND_HALF_UP))


CONTEXTS = {
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "batch": {"processing": "batch"},
    "fast": {"speed": "fast"},
}
