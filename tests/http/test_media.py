"""Moderations, sound and edited pictures by OpenAI's SDK as it is: what a stub is sent, what they cost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.call_facts import CallFacts
from gateway.core.billing.price_book import read_price
from gateway.core.calls.routes import ModelRule, ModelTarget
from gateway.core.families.openai import FAMILY
from gateway.core.model import Service
from tests.core.billing.prices import price_row
from tests.core.calls.test_forms import FILE, form
from tests.core.calls.test_media_places import SILENCE
from tests.core.calls.test_recordings import wav
from tests.http.fakes import CALLER, KEY, STREAM_HEAD, answer, chunks, post
from tests.http.stage import Stage, staged
from tests.waiting import eventually

SERVICES = ("moderations", "images", "transcriptions")
ROUTES = tuple(replace(route, upstream="up") for route in FAMILY.routes if route.service in SERVICES)
MONEY = Budget(1, "money", "money", 10**12, "day")
JUDGED = {"id": "modr-1", "model": "omni-moderation-latest", "results": [{"flagged": False}]}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES) as made:
        for number, key in enumerate(SERVICES, 91):
            made.directory.services[key] = Service(number, key, "subscription")
        yield made


def priced(stage: Stage, model: str, **price: Any) -> None:
    """A model has a price, and money decides."""
    stage.directory.prices[model] = read_price(price_row(id=5, model=model, **price)).vector
    stage.directory.budgets_there = [MONEY]


def sdk(stage: Stage) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key=KEY, max_retries=0)


def answers(stage: Stage, said: dict[str, Any]) -> None:
    stage.upstream.scripts.append([answer(json.dumps(said).encode())])


def charged(stage: Stage) -> CallFacts:
    return stage.facts()


def unpriced_calls(stage: Stage) -> int:
    return sum(dict(stage.tally.snapshot()["unpriced_calls"]).values())


async def test_a_moderation_is_a_call_of_its_model_that_may_cost_nothing(stage: Stage) -> None:
    model = "omni-moderation-latest"
    ask = sdk(stage).moderations.create
    answers(stage, JUDGED)
    await ask(model=model, input="hello")
    found = charged(stage)
    assert (found.model, found.cost, found.estimated, unpriced_calls(stage)) == (model, None, True, 1)
    assert json.loads(stage.upstream.received[-1].body) == {"model": model, "input": "hello"}
    stage.directory.budgets_there = [MONEY]
    with pytest.raises(openai.PermissionDeniedError, match="model"):
        await ask(model=model, input="hello")
    for request, cost in (("0", 0), ("0.001", 1_000_000)):
        priced(stage, model, request=request)
        answers(stage, JUDGED)
        await ask(model=model, input=[{"type": "text", "text": "hello"}])
        assert (charged(stage).cost, unpriced_calls(stage)) == (cost, 1)


async def test_a_moderation_whose_model_nobody_says_or_that_is_not_on_a_list_is_refused(stage: Stage) -> None:
    with pytest.raises(openai.BadRequestError) as missing:
        await sdk(stage).moderations.create(input="hello")
    assert missing.value.param == "model"
    stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
    with pytest.raises(openai.PermissionDeniedError):
        await sdk(stage).moderations.create(model="omni-moderation-latest", input="hello")
    assert not stage.upstream.received


HEARD: dict[str, Any] = {"text": "hello"}
SECONDS = HEARD | {"usage": {"type": "duration", "seconds": 9}}
TOKENS = {
    "type": "tokens", "input_tokens": 140, "output_tokens": 20, "total_tokens": 160,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 130},
}  # fmt: skip
A_SECOND: dict[str, str] = {"audio_second": "0.0001"}
OF_TOKENS = {"input": "2.5", "audio_input": "6", "output": "10"}


@pytest.mark.parametrize(
    ("price", "recording", "written", "told", "tools", "nano"),
    [
        # As the answer says: 9 seconds at 0.0001.
        (A_SECOND, wav(2), "json", SECONDS, {"audio_second": 9}, 900_000),
        (A_SECOND, wav(2), "verbose_json", HEARD | {"duration": "8.47"}, {"audio_second": 2}, 200_000),
        # It says nothing: the seconds of the file, else as many as its 3,000 bytes could hold.
        (A_SECOND, wav(2), "json", HEARD, {"audio_second": 2}, 200_000),
        (A_SECOND, bytes(3_000), "json", HEARD, {"audio_second": 4}, 400_000),
        # 10 * 2.5 + 130 * 6 + 20 * 10 millionths.
        (OF_TOKENS, wav(2), "json", HEARD | {"usage": TOKENS}, {}, 1_005_000),
    ],
)
async def test_a_transcript_costs_what_its_answer_says_else_the_seconds_of_its_file(  # noqa: PLR0917  # a row
    stage: Stage, price: dict[str, Any], recording: bytes, written: Any, told: dict[str, Any],
    tools: dict[str, int], nano: int,
) -> None:  # fmt: skip
    priced(stage, "heard", **price)
    answers(stage, told)
    ask = sdk(stage).audio.transcriptions.create
    got = await ask(model="heard", file=("a.wav", recording), response_format=written)
    assert got.text == "hello"
    found = charged(stage)
    assert (found.tools, found.cost, found.unpriced, found.model) == (tools, nano, "", "heard")
    assert stage.counters.holds[-1].money >= min(nano, 200_000)
    sent = stage.upstream.received[-1]
    assert recording in sent.body
    assert sent.all(b"content-type")[0].startswith(b"multipart/form-data; boundary=")


async def test_a_text_alone_says_no_seconds_so_only_a_file_that_says_them_has_a_cost(stage: Stage) -> None:
    ask = sdk(stage).audio.translations.create
    text = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"
    stage.upstream.scripts += [[text]] * 3
    stage.directory.prices["heard"] = read_price(price_row(id=5, model="heard", **A_SECOND)).vector
    assert await ask(model="heard", file=("a.mp3", bytes(3_000)), response_format="text") == "hello"
    assert (charged(stage).unpriced, charged(stage).tools) == ("audio_file", {"audio_file": 1})
    priced(stage, "heard", **A_SECOND)
    with pytest.raises(openai.PermissionDeniedError, match="audio_file"):
        await ask(model="heard", file=("a.mp3", bytes(3_000)), response_format="text")
    await ask(model="heard", file=("a.wav", wav(3)), response_format="text")
    assert (charged(stage).cost, charged(stage).unpriced) == (300_000, "")
    await ask(model="heard", file=("a.flac", SILENCE), response_format="text")
    assert (charged(stage).cost, charged(stage).unpriced) == (150_000_000, ""), "1,500 seconds in 2 KB"
    assert stage.counters.holds[-1].money == 150_000_000


async def test_a_streamed_transcript_costs_the_tokens_of_its_last_event(stage: Stage) -> None:
    priced(stage, "heard", **OF_TOKENS)
    events = [
        {"type": "transcript.text.delta", "delta": "hel"}, {"type": "transcript.text.delta", "delta": "lo"},
        {"type": "transcript.text.done", "text": "hello", "usage": TOKENS},
    ]  # fmt: skip
    lines = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in events]
    stage.upstream.scripts.append([STREAM_HEAD + chunks(*lines)])
    got = await sdk(stage).audio.transcriptions.create(model="heard", file=("a.wav", wav(2)), stream=True)
    assert [one.type async for one in got] == [one["type"] for one in events]
    found = charged(stage)
    assert (found.cost, found.streamed, found.estimated, found.total) == (1_005_000, True, False, 160)


async def test_seconds_that_are_reported_where_tokens_alone_have_a_price_are_unpriced(stage: Stage) -> None:
    priced(stage, "heard", **OF_TOKENS)
    answers(stage, SECONDS)
    await sdk(stage).audio.transcriptions.create(model="heard", file=("a.wav", wav(2)))
    assert (charged(stage).cost, charged(stage).unpriced) == (0, "audio_second")


DRAWN = {"created": 1, "data": [{"b64_json": "x"}, {"b64_json": "y"}], "size": "1024x1024", "quality": "high"}
DRAWN_TOKENS = {
    "input_tokens": 50, "output_tokens": 4_160, "total_tokens": 4_210,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
}  # fmt: skip


async def test_edited_pictures_cost_as_drawn_ones_do(stage: Stage) -> None:
    priced(stage, "draw", images={"1024x1024/high": "0.167"})
    client = sdk(stage)
    answers(stage, DRAWN)
    pictures = [("a.png", b"\x89PNG1"), ("b.png", b"\x89PNG2")]
    await client.images.edit(model="draw", image=pictures, prompt="a hat", n=2, quality="high")
    assert (charged(stage).tools, charged(stage).cost) == ({"images.1024x1024/high": 2}, 334_000_000)
    assert stage.counters.holds[-1].money >= 334_000_000
    priced(stage, "dall-e-2", images={"1024x1024/standard": "0.02"})
    answers(stage, {"created": 1, "data": [{"url": "x"}]})
    await client.images.create_variation(model="dall-e-2", image=("a.png", b"\x89PNG"), n=1)
    assert charged(stage).cost == 20_000_000
    model = "gpt-image-1"
    priced(stage, model, input="5", image_input="10", output="40")
    parts = [
        {"type": "image_edit.partial_image", "partial_image_index": 0, "b64_json": "x"},
        {"type": "image_edit.completed", "b64_json": "y", "usage": DRAWN_TOKENS},
    ]
    lines = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in parts]
    stage.upstream.scripts.append([STREAM_HEAD + chunks(*lines)])
    got = await client.images.edit(
        model=model, image=pictures[0], mask=pictures[1], prompt="a hat", stream=True, partial_images=1
    )
    assert [one.type async for one in got] == [one["type"] for one in parts]
    # 10 * 5 + 40 * 10 + 4,160 * 40 millionths
    assert (charged(stage).cost, charged(stage).estimated) == (166_850_000, False)


async def test_pictures_are_edited_by_json_as_well(stage: Stage) -> None:
    priced(stage, "draw", images={"1024x1024/high": "0.167"})
    said: dict[str, Any] = {"model": "draw", "prompt": "a hat", "n": 2, "quality": "high"}
    none = await stage.ask(post(json.dumps(said).encode(), b"/v1/images/edits"))
    assert (none.status, none.reason) == (400, "invalid_request")
    said["images"] = [{"image_url": "data:image/png;base64,iVBORw0KGgo" + "A" * 300_000}]
    answers(stage, DRAWN)
    assert (await stage.ask(post(json.dumps(said).encode(), b"/v1/images/edits"))).status == 200
    assert charged(stage).cost == 334_000_000
    said["images"] = [{"file_id": "file-of-another"}]
    assert (await stage.ask(post(json.dumps(said).encode(), b"/v1/images/edits"))).status == 404


FORM = b"content-type: multipart/form-data; boundary=b\r\n"
TRANSCRIBE = b"/v1/audio/transcriptions"


async def test_a_form_is_checked_whatever_the_order_of_its_parts(stage: Stage) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"heard"}))
    answers(stage, SECONDS)
    last = form((FILE, wav(2)), (b"model", b"heard"))
    assert (await stage.ask(post(last, TRANSCRIBE, FORM))).status == 200
    assert stage.upstream.received[-1].body == last
    for body, status in (
        (form((FILE, wav(2)), (b"model", b"other")), 403),
        (form((FILE, wav(2))), 400),
        (form((b"model", b"heard")), 400),
        (form((FILE, wav(2)), (b"model", b"heard"), (b"model", b"other")), 400),
        (form((FILE, wav(2)), (b"model", b"heard"), (b"fallbacks", b"other")), 403),
        (form((FILE, wav(2)), (b"model", b"heard"), (b"api_base", b"http://x")), 400),
        (form((FILE, wav(2)), (b"model", b"heard"), (b"response_format", b"new")), 400),
    ):
        got = await stage.ask(post(body, TRANSCRIBE, FORM))
        assert got.status == status, (body[-200:], got.body)
    for kind in (b"application/json", b"multipart/mixed; boundary=b", b"multipart/form-data"):
        got = await stage.ask(post(last, TRANSCRIBE, b"content-type: %b\r\n" % kind))
        assert (got.status, got.reason) == (400, "invalid_request")
    twice = await stage.ask(post(last, TRANSCRIBE, FORM + FORM))
    coded = await stage.ask(post(last, TRANSCRIBE, FORM + b"content-encoding: gzip\r\n"))
    assert (twice.status, coded.status) == (400, 400)
    assert len(stage.upstream.received) == 1


async def test_a_form_goes_on_with_the_name_that_its_upstream_has_for_the_model() -> None:
    rule = ModelRule("mine", False, (ModelTarget("up", "their-own-name"),))
    async with staged(ROUTES, models=(rule,)) as stage:
        stage.directory.services["transcriptions"] = Service(91, "transcriptions", "subscription")
        answers(stage, SECONDS)
        await sdk(stage).audio.transcriptions.create(model="mine", file=("a.wav", wav(1)))
        sent = stage.upstream.received[-1].body
        assert b"their-own-name" in sent
        assert b"mine" not in sent
        assert wav(1) in sent


SMALL = {"body_bytes_max": 1 << 20, "collected_bytes_max": 64 << 10}
LONG = wav(400)  # 9.6 MB


@contextlib.asynccontextmanager
async def long_forms(*models: ModelRule) -> AsyncIterator[Stage]:
    """A stage where a body of more than a MiB is not kept."""
    async with staged(ROUTES, models=models, **SMALL) as stage:
        stage.directory.services["transcriptions"] = Service(91, "transcriptions", "subscription")
        priced(stage, "heard", **A_SECOND)
        yield stage


async def test_a_long_recording_passes_as_it_comes_and_costs_its_seconds() -> None:
    rule = ModelRule("mine", False, (ModelTarget("up", "heard"), ModelTarget("up", "other")))
    async with long_forms(rule) as stage:
        for model in ("heard", "mine"):
            answers(stage, HEARD)
            await sdk(stage).audio.transcriptions.create(model=model, file=("a.wav", LONG))
            sent = stage.upstream.received[-1]
            assert LONG in sent.body
            assert b'name="model"\r\n\r\nheard\r\n' in sent.body
            assert (charged(stage).tools, charged(stage).cost) == ({"audio_second": 400}, 40_000_000)
        assert stage.counters.holds[-1].money == 40_000_000


async def test_a_long_recording_is_never_kept_and_a_client_that_leaves_pays_nothing() -> None:
    async with long_forms() as stage:
        stage.upstream.expects_cut = True
        stage.directory.budgets_there = []
        client = await stage.client()
        begun = form((b"model", b"heard"), (FILE, LONG))[: -len(b"\r\n--b--\r\n")]
        head = post(b"", TRANSCRIBE, FORM).replace(b"content-length: 0", b"content-length: %d" % (1 << 30))
        await client.send(head + begun)
        most = 0

        def passed() -> bool:
            nonlocal most
            most = max(most, stage.plane.buffers.used)
            return stage.upstream.bytes_read > len(LONG)

        await eventually(passed)
        assert most < 1 << 20
        client.close()
        await stage.settled()
        await eventually(lambda: not stage.plane.buffers.used)
        assert not stage.counters.charges


TEXTS = ((b"model", b"heard"), (b"response_format", b"json"))


@pytest.mark.parametrize(
    ("body", "heard_of"),
    [
        (form((FILE, LONG), *TEXTS), False),  # nobody knows the model
        (form((b"model", b"other"), (FILE, LONG)), False),
        (form((b"prompt", b"x" * (512 << 10)), *TEXTS, (FILE, LONG)), False),
        (form(*TEXTS, (FILE, LONG), (b"model", b"other")), True),
        (form(*TEXTS, (FILE, LONG), (FILE, LONG)), True),
        (form(*TEXTS, (FILE, LONG))[:-4] + b"\r\n\r\n", True),
        (form(*TEXTS, (FILE, LONG + b"\n--b\n")), True),
    ],
)
async def test_a_long_form_that_says_more_behind_its_file_never_arrives_whole(
    body: bytes, heard_of: bool
) -> None:
    async with long_forms() as stage:
        stage.upstream.expects_cut = True
        stage.directory.caller = replace(CALLER, models=frozenset({"heard"}))
        client = await stage.client()
        with contextlib.suppress(ConnectionError):
            await client.send(post(body, TRANSCRIBE, FORM))
        got = await client.answer()
        assert got.status == (403 if b"other" in body[:200] else 400), got.body
        if heard_of:
            await stage.settled()
        assert not stage.upstream.received
        assert (stage.upstream.bytes_read > 0) is heard_of
        assert not stage.counters.charges


async def test_a_long_form_says_its_length_and_is_one_of_a_recording() -> None:
    async with long_forms() as stage:
        stage.directory.services["images"] = Service(92, "images", "subscription")
        client = await stage.client()
        head = post(b"", TRANSCRIBE, FORM).replace(b"content-length: 0", b"transfer-encoding: chunked")
        with contextlib.suppress(ConnectionError):
            await client.send(head + chunks(form(*TEXTS, (FILE, LONG))))
        assert (await client.answer()).status == 413
        for path, length in ((b"/v1/images/edits", 2 << 20), (TRANSCRIBE, 1 << 40)):
            told = post(b"", path, FORM).replace(b"content-length: 0", b"content-length: %d" % length)
            assert (await stage.ask(told)).status == 413
