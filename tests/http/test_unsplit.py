"""Answers that do not split what they count, by the bundled prices: pictures, transcripts, units beside tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.call_facts import CallFacts
from gateway.core.billing.price_book import UNITS, read_price
from gateway.core.calls.routes import Route
from gateway.core.families.openai import FAMILY
from gateway.core.model import Service
from gateway.run.bundled_prices import LIST
from tests.core.billing.prices import price_row
from tests.core.calls.test_forms import FILE, form
from tests.core.calls.test_recordings import wav
from tests.http.fakes import STREAM_HEAD, answer, chunks, post
from tests.http.stage import Stage, staged

PICTURES, EDITS, SPEECH = b"/v1/images/generations", b"/v1/images/edits", b"/v1/audio/speech"
TRANSCRIBE, RERANK, CHAT = b"/v1/audio/transcriptions", b"/rerank", b"/v1/chat/completions"
SERVICES = ("images", "speech", "transcriptions", "chat")
ROUTES = (
    *[replace(route, upstream="up") for route in FAMILY.routes if route.service in SERVICES],
    Route(("POST",), RERANK.decode(), "up", "chat", FAMILY.name, "openai_embeddings"),
)
MONEY = Budget(1, "money", "money", 10**12, "day")
BUNDLED: list[dict[str, Any]] = json.loads(LIST.read_bytes())["rows"]
OF_ANSWERS = [unit for unit in UNITS if not unit.startswith("cache_")]
TOKENS = ("input", "output", "audio_input", "audio_output", "image_input", "image_output", "reasoning")


def named(row: dict[str, Any], *kinds: str) -> dict[str, Fraction]:
    return {kind: Fraction(row[kind]) for kind in kinds if row.get(kind) is not None}


def id_of(row: dict[str, Any]) -> str:
    return f"{row['provider']}/{row['model']}/{row.get('effective_from', '')}"


def is_drawing(row: dict[str, Any]) -> bool:
    return "image_output" in row or row["model"].startswith("gpt-image-")


BOTH = [row for row in BUNDLED if named(row, *OF_ANSWERS) and named(row, "input", "output", "audio_input")]
NO_WHOLE = [
    row for row in BUNDLED
    if ("output" not in row and named(row, "image_output", "audio_output", "reasoning"))
    or ("input" not in row and named(row, "audio_input", "image_input"))
]  # fmt: skip
DRAWING = [row for row in BUNDLED if is_drawing(row)]
HEARING = [row for row in BUNDLED if "transcribe" in row["model"] and named(row, "audio_input")]
# Prices whose sellers take both, the second and the token: Mistral's page of prices has Voxtral Small's sound by the
# minute beside its text by the token, and ElevenLabs' has minutes beside its realtime models' tokens (2026-11-30).
TAKES_BOTH = ("voxtral-small-", "eleven_realtime_")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES) as made:
        for number, key in enumerate(SERVICES, 91):
            made.directory.services[key] = Service(number, key, "subscription")
        made.directory.budgets_there = [MONEY]
        yield made


def priced(stage: Stage, row: dict[str, Any]) -> None:
    stage.directory.prices = {"m": read_price(price_row(id=5, **row, model="m")).vector}


async def facts(stage: Stage, asked: bytes, *told: dict[str, Any]) -> CallFacts:
    """The facts of a call that is answered by one document, or by several events."""
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in told]
    whole = answer(json.dumps(told[0]).encode())
    stage.upstream.scripts.append([whole if len(told) == 1 else STREAM_HEAD + chunks(*lines)])
    got = await stage.ask(asked)
    assert got.status == 200, got.body
    return stage.facts()


def asks(path: bytes, **said: Any) -> bytes:
    return post(json.dumps({"model": "m", **said}).encode(), path)


def transcribes() -> bytes:
    body = form((FILE, wav(10)), (b"model", b"m"))
    return post(body, TRANSCRIBE, b"content-type: multipart/form-data; boundary=b\r\n")


def clean(row: dict[str, Any]) -> dict[str, Any]:
    return {kind: row[kind] for kind in (*TOKENS, *UNITS, "cache_read", "cache_write") if kind in row}


READ, WRITTEN = 1_000, 100
HEARD = {"type": "tokens", "input_tokens": READ, "output_tokens": WRITTEN, "total_tokens": READ + WRITTEN}


def test_the_bundled_list_has_33_prices_of_units_and_tokens_and_15_of_a_part() -> None:
    """Where a new list has others, look whether they take both, and say so above."""
    assert (len(BOTH), len(NO_WHOLE)) == (33, 15)
    assert sum(row["model"].startswith(TAKES_BOTH) for row in BOTH) == 11


@pytest.mark.parametrize("row", BOTH, ids=id_of)
async def test_a_thing_with_two_prices_is_paid_once_unless_its_seller_takes_both(
    stage: Stage, row: dict[str, Any]
) -> None:
    priced(stage, clean(row))
    price = {"input": Fraction(0), **named(row, "input", "output", "audio_input")}
    if "audio_second" in row:
        found = await facts(stage, transcribes(), {"text": "hi", "usage": HEARD})
        of_sound = price.get("audio_input", price["input"])
        dollars = (READ * of_sound + WRITTEN * price["output"]) / 10**6
        if row["model"].startswith(TAKES_BOTH):
            dollars += 10 * Fraction(row["audio_second"])
    elif "search" in row:
        asked = asks(RERANK, query="q", documents=["a"])
        found = await facts(stage, asked, {"results": [], "usage": {"total_tokens": 26}})
        dollars = Fraction(row["search"])
    else:
        usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN, "total_tokens": READ + WRITTEN}
        said = asks(CHAT, messages=[{"role": "user", "content": "x"}], max_tokens=200)
        found = await facts(stage, said, {"choices": [], "usage": usage})
        dollars = (READ * price["input"] + WRITTEN * price["output"]) / 10**6
    assert (found.cost, found.unpriced) == (round(dollars * 10**9), "")


def drawn(split: bool, **said: Any) -> dict[str, Any]:
    parts = {"output_tokens_details": {"image_tokens": 1_056, "text_tokens": 0}} if split else {}
    usage = {
        "input_tokens": 9, "output_tokens": 1_056, "total_tokens": 1_065,
        "input_tokens_details": {"text_tokens": 9, "image_tokens": 0}, **parts,
    }  # fmt: skip
    return {"created": 1, "data": [{"b64_json": "QUJD"}], "usage": usage, **said}


# Where no price of pictures is named, that of what is written is theirs.
def of_a_picture(row: dict[str, Any]) -> Fraction:
    return Fraction(row.get("image_output") or row["output"])


@pytest.mark.parametrize("row", DRAWING, ids=id_of)
async def test_a_picture_costs_the_same_whether_its_tokens_are_split_or_not(
    stage: Stage, row: dict[str, Any]
) -> None:
    priced(stage, clean(row))
    nano = round((9 * Fraction(row["input"]) + 1_056 * of_a_picture(row)) * 1_000)
    event = drawn(False, type="image_generation.completed")
    for streamed, told in ((False, [drawn(True)]), (False, [drawn(False)]), (True, [{"type": "x"}, event])):
        found = await facts(stage, asks(PICTURES, prompt="x", stream=streamed), *told)
        assert (found.cost, found.unpriced) == (nano, ""), (streamed, told)


@pytest.mark.parametrize("row", HEARING, ids=id_of)
async def test_a_transcript_costs_the_same_whether_its_tokens_are_split_or_not(
    stage: Stage, row: dict[str, Any]
) -> None:
    priced(stage, clean(row))
    nano = round((READ * Fraction(row["audio_input"]) + WRITTEN * Fraction(row["output"])) * 1_000)
    split = HEARD | {"input_token_details": {"text_tokens": 0, "audio_tokens": READ}}
    for usage in (split, HEARD, HEARD | {"input_token_details": {}}):
        found = await facts(stage, transcribes(), {"text": "hi", "usage": usage})
        assert (found.cost, found.unpriced) == (nano, ""), usage


@pytest.mark.parametrize("row", NO_WHOLE, ids=id_of)
async def test_a_whole_without_a_price_costs_as_its_dearest_part(stage: Stage, row: dict[str, Any]) -> None:
    priced(stage, clean(row))
    usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN, "total_tokens": READ + WRITTEN}
    said = asks(CHAT, messages=[{"role": "user", "content": "x"}], max_tokens=200)
    found = await facts(stage, said, {"choices": [], "usage": usage})
    read = Fraction(row.get("input") or row["audio_input"])
    nano = round((READ * read + WRITTEN * Fraction(row.get("output") or row["image_output"])) * 1_000)
    assert (found.cost, found.unpriced, found.estimated) == (nano, "", True)


# Of what no page documents, the table of GPT Image 1 counts.
@pytest.mark.parametrize(
    ("model", "asked", "told", "tokens"),
    [
        ("gpt-image-1", {"size": "1024x1024", "quality": "low"}, {}, 272),
        ("gpt-image-1.5", {"size": "1024x1536", "quality": "high"}, {}, 6_240),
        ("azure/gpt-image-1", {"size": "1536x1024", "quality": "medium"}, {}, 1_568),
        ("gpt-image-1", {}, {"size": "1024x1024", "quality": "medium"}, 1_056),
        ("gpt-image-1", {}, {}, 6_240),
        ("gpt-image-1", {"size": "auto", "quality": "low"}, {}, 6_240),
        ("gpt-image-1", {"size": "100x100", "quality": "low"}, {}, 6_240),
        ("gpt-image-1-mini", {"size": "1024x1024", "quality": "medium"}, {}, 1_375),
        ("gpt-image-2-2026-04-21", {"size": "1536x1024", "quality": "high"}, {}, 5_488),
        ("gpt-image-2", {"size": "1024x1024", "quality": "auto"}, {}, 7_024),
        ("gpt-image-2.5-flare", {"size": "1024x1024", "quality": "medium"}, {}, 439),
        ("gpt-image-2.5-sunburst", {"size": "1024x1024", "quality": "xhigh"}, {}, 3_122),
        ("gpt-image-2.6-sunburst", {"size": "1024x1024", "quality": "medium"}, {}, 1_056),
        ("mai-image-2.5", {"size": "1024x1024"}, {}, 1_024),
        ("my-image", {"n": 3, "size": "1024x1024", "quality": "low"}, {}, 816),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_picture_without_a_report_is_held_and_charged_by_its_size_and_quality(  # noqa: PLR0917  # a row
    stage: Stage, model: str, asked: dict[str, Any], told: dict[str, Any], tokens: int, streamed: bool
) -> None:
    stage.directory.prices = {model: read_price(price_row(id=5, input="0", image_output="30")).vector}
    said = post(json.dumps({"model": model, "prompt": "x", "stream": streamed, **asked}).encode(), PICTURES)
    whole = {"created": 1, "data": [{"b64_json": "x"}] * asked.get("n", 1), **told}
    end = {"type": "image_generation.completed", "b64_json": "x", **told}
    found = await facts(stage, said, *([{"type": "x"}, end] if streamed else [whole]))
    assert (found.cost, found.estimated, found.unpriced) == (tokens * 30_000, True, "")
    if not told:
        assert stage.counters.holds[-1].money == tokens * 30_000


# Reports that tell no output of a picture, or split none of it: a low picture of 1024 x 1024 has 272 tokens.
NO_REPORT = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("usage", "of_pictures", "estimated"),
    [
        (NO_REPORT, 272, True), ({"input_tokens": 9}, 272, True), ({}, 272, True),
        ({"input_tokens": 9, "total_tokens": 309}, 300, False), ({"total_tokens": 281}, 281, True),
        ({"input_tokens": 9, "output_tokens": 300, "output_tokens_details": {"text_tokens": 0, "image_tokens": 0}}, 300, False),
        ({"input_tokens": 9, "output_tokens": 300, "output_tokens_details": {"image_tokens": 200}}, 300, False),
        ({"input_tokens": 9, "output_tokens": 300, "output_tokens_details": {"text_tokens": 100}}, 200, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
async def test_pictures_that_a_report_does_not_tell_are_pictures(
    stage: Stage, usage: dict[str, int], of_pictures: int, estimated: bool, streamed: bool
) -> None:
    row = {"provider": "openai", "input": "0", "output": "10", "image_output": "32"}
    stage.directory.prices = {
        "gpt-image-1.5": read_price(price_row(id=5, **row, model="gpt-image-1.5")).vector
    }
    said = {"model": "gpt-image-1.5", "prompt": "a cat", "size": "1024x1024", "quality": "low"}
    told: list[dict[str, Any]] = [{"created": 1, "data": [{"b64_json": "QUJD"}], "usage": usage}]
    if streamed:
        said["stream"] = True
        told = [
            {"type": "image_generation.partial_image"},
            {"type": "image_generation.completed", "usage": usage},
        ]
    found = await facts(stage, post(json.dumps(said).encode(), PICTURES), *told)
    of_text = usage.get("output_tokens", 0) - of_pictures if of_pictures == 200 else 0
    assert (found.cost, found.unpriced, found.estimated) == (
        of_pictures * 32_000 + of_text * 10_000,
        "",
        estimated,
    )


@pytest.mark.parametrize(
    ("model", "said", "tokens"),
    [
        ("gpt-image-2", {"size": "3840x2160"}, 13_342), ("gpt-image-2", {"size": "3840x2160", "quality": "high"}, 13_342),
        ("gpt-image-2", {}, 7_024), ("gpt-image-1", {"size": "1024x1024", "quality": "low", "partial_images": 3}, 572),
        ("gpt-image-1", {"size": "1024x1024", "quality": "low", "partial_images": 99}, 572),
    ],
)  # fmt: skip
async def test_dearest_picture_of_a_request_is_held(
    stage: Stage, model: str, said: dict[str, Any], tokens: int
) -> None:
    row = {"provider": "openai", "input": "0", "output": "10", "image_output": "10"}
    stage.directory.prices = {model: read_price(price_row(id=5, **row, model=model)).vector}
    stage.directory.budgets_there = [replace(MONEY, hold="maximum")]
    await facts(
        stage, post(json.dumps({"model": model, "prompt": "x", **said}).encode(), PICTURES), drawn(split=True)
    )
    assert stage.counters.holds[-1].money == tokens * 10_000


async def test_the_unsplit_input_of_an_edit_is_of_pictures_besides_the_prompt(stage: Stage) -> None:
    priced(stage, {"input": "5", "image_input": "8", "output": "10", "image_output": "32"})
    usage = {"input_tokens": 1_009, "output_tokens": 1_056, "total_tokens": 2_065}
    images = [{"image_url": "data:image/png;base64,iVBORw0KGgo="}]
    found = await facts(stage, asks(EDITS, prompt="a", images=images), {"data": [{}], "usage": usage})
    assert found.cost == (1 * 5 + 1_008 * 8 + 1_056 * 32) * 1_000


async def test_speech_with_events_needs_no_price_of_characters(stage: Stage) -> None:
    price = {"input": "0.6", "output": "12"}
    priced(stage, price)
    usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
    events = {"type": "speech.audio.delta", "audio": "QUJD"}, {"type": "speech.audio.done", "usage": usage}
    said = {"voice": "alloy", "input": "hello there"}
    found = await facts(stage, asks(SPEECH, stream_format="sse", **said), *events)
    assert (found.cost, found.unpriced) == (1_220_400, "")
    for row in (price, price | {"audio_output": "12"}):  # sound alone tells nothing
        priced(stage, row)
        assert (await stage.ask(asks(SPEECH, **said))).reason == "model_not_priced"


@pytest.mark.parametrize(
    ("price", "nano"),
    [
        ({"audio_second": "0.0001"}, 1_000_000),
        ({"audio_second": "0.0001", "audio_input": "6", "output": "10"}, 7_000_000),
        ({"audio_input": "6", "output": "10"}, 7_000_000),
        ({"audio_second": "0.0001", "audio_input": "0", "output": "10"}, 2_000_000),
    ],
)
async def test_seconds_are_paid_unless_tokens_of_sound_have_a_price(
    stage: Stage, price: dict[str, str], nano: int
) -> None:
    priced(stage, price)
    assert (await facts(stage, transcribes(), {"text": "hi", "usage": HEARD})).cost == nano


async def test_unsplit_sound_and_pictures_of_a_chat_cost_their_own_price(
    stage: Stage,
) -> None:
    priced(
        stage, {"input": "1", "output": "2", "image_output": "30", "audio_output": "20", "audio_input": "40"}
    )
    usage = {"prompt_tokens": 10, "completion_tokens": 1_000, "total_tokens": 1_010}
    one = [{"role": "user", "content": "x"}]
    for modalities, output in ((["image", "text"], 30), (["text", "audio"], 20), (["text"], 2)):
        said = asks(CHAT, messages=one, max_tokens=2_000, modalities=modalities)
        found = await facts(stage, said, {"choices": [], "usage": usage})
        assert found.cost == (10 * 1 + 1_000 * output) * 1_000, modalities
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRiQAAABXQVZF", "format": "wav"}}
    heard = asks(CHAT, messages=[{"role": "user", "content": [sound]}], max_tokens=2_000)
    assert (await facts(stage, heard, {"choices": [], "usage": usage})).cost == (10 * 40 + 1_000 * 2) * 1_000
