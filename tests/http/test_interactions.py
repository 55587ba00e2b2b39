"""Interactions, files, caches and pictures of Gemini's, by Google's SDK: owned, counted, or refused."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from google import genai
from google.genai import errors, types

from gateway.core.accounts.call_facts import CallFacts
from gateway.core.billing.price_book import read_price
from gateway.core.families.gemini import FAMILY
from gateway.http.ports import JobsPort
from tests.core.billing.prices import price_row
from tests.http.fakes import AUTH, CALLER, KEY, STREAM_HEAD, answer, chunks, get, post
from tests.http.stage import Stage, staged

ROUTES = tuple(replace(route, upstream="up") for route in FAMILY.routes)
MODEL = "gemini-x"
INTERACTIONS = b"/v1beta/interactions"
USAGE = {
    "total_input_tokens": 100, "total_cached_tokens": 40, "total_output_tokens": 20,
    "total_thought_tokens": 5, "total_tool_use_tokens": 10, "total_tokens": 135,
    "input_tokens_by_modality": [{"modality": "text", "tokens": 70}, {"modality": "audio", "tokens": 30}],
    "grounding_tool_count": [{"type": "google_search", "count": 2}],
}  # fmt: skip
MADE = {
    "id": "v1_a", "object": "interaction", "model": MODEL, "status": "completed", "usage": USAGE,
    "steps": [{"type": "model_output", "content": [{"type": "text", "text": "At the gate."}]}],
}  # fmt: skip
PRICE = {"input": "1", "cache_read": "0.1", "audio_input": "3", "output": "10"}
# (110 - 40 - 30) * 1 + 40 * 0.1 + 30 * 3 + 25 * 10 millionths, and two searches of 35 a thousand.
NANO = 1_000 * (40 + 4 + 90 + 250) + 70_000_000


class NoLists:
    """Nothing is listed."""

    async def ask(self, *asked: Any) -> tuple[int, bytes]:
        return 200, b'{"files":[{"name":"files/f1"},{"name":"files/theirs"}]}'


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES, jobs=cast("JobsPort", NoLists())) as made:
        price = read_price(price_row(id=5, model=MODEL, tools={"web_search": "35"}, **PRICE))
        made.directory.prices[MODEL] = price.vector
        yield made


_CLIENTS: list[genai.Client] = []  # one that is let go of closes


def sdk(stage: Stage) -> genai.client.AsyncClient:
    options = types.HttpOptions(base_url=f"http://127.0.0.1:{stage.port}", api_version="v1beta")
    _CLIENTS.append(genai.Client(api_key=KEY, http_options=options))
    return _CLIENTS[-1].aio


def facts(stage: Stage) -> CallFacts:
    return stage.facts()


def asks(**said: Any) -> bytes:
    return post(json.dumps({"model": MODEL, "input": "Where?", **said}).encode(), INTERACTIONS)


async def test_an_interaction_costs_what_it_reports_and_belongs_to_its_organization(stage: Stage) -> None:
    stage.upstream.scripts = [[answer(json.dumps(MADE).encode())]]
    said = await sdk(stage).interactions.create(model=MODEL, input="Where?")
    assert said.id == "v1_a"
    found = facts(stage)
    assert (found.cost, found.total, found.estimated) == (NANO, 135, False)
    assert (found.tools, found.unpriced) == ({"web_search": 2}, "")
    assert (CALLER.organization_id, "interactions/v1_a") in stage.objects.kept
    assert stage.counters.holds[-1].need > 0
    asked: list[tuple[str, bytes]] = [
        ("GET", get(INTERACTIONS + b"/v1_a")), ("DELETE", get(INTERACTIONS + b"/v1_a", method=b"DELETE")),
        ("POST", post(b"", INTERACTIONS + b"/v1_a/cancel")),
        ("POST", asks(previous_interaction_id="v1_a")),
    ]  # fmt: skip
    for method, request in asked:
        assert (await stage.ask(request, method)).status == 200
    stage.directory.caller = replace(CALLER, organization_id=99)
    for method, request in asked:
        assert (await stage.ask(request, method)).reason == "object_not_found"
    stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
    assert (await stage.ask(asks())).reason == "model_not_allowed"


async def test_a_stream_of_an_interaction_costs_what_its_last_event_reports(stage: Stage) -> None:
    events: list[dict[str, Any]] = [
        {"event_type": "interaction.created", "interaction": {"id": "v1_b", "status": "in_progress"}},
        {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "At the "}},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "gate."}},
        {"event_type": "step.stop", "index": 0},
        {"event_type": "interaction.completed", "interaction": {**MADE, "id": "v1_b", "steps": []}},
    ]
    lines = [
        b"event: %b\ndata: %b\n\n" % (one["event_type"].encode(), json.dumps(one).encode()) for one in events
    ]
    stage.upstream.scripts = [[STREAM_HEAD + chunks(*lines, b"event: done\ndata: [DONE]\n\n")]]
    stream = await sdk(stage).interactions.create(model=MODEL, input="Where?", stream=True)
    assert [one.event_type async for one in stream] == [one["event_type"] for one in events]
    found = facts(stage)
    assert (found.cost, found.streamed, found.estimated, found.response_model) == (NANO, True, False, MODEL)
    assert (CALLER.organization_id, "interactions/v1_b") in stage.objects.kept
    stage.upstream.scripts = [[STREAM_HEAD + chunks(*lines[:4])]]
    assert (await stage.ask(asks(stream=True))).status == 200
    assert facts(stage).estimated
    assert facts(stage).total > 0


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"model": None, "agent": "deep-research"}, "agent"), ({"background": True}, "background"),
        ({"environment": {"type": "remote"}}, "environment"), ({"environment": {}}, "environment"),
        ({"continuation_token": "ct_1"}, "continuation_token"),
        ({"webhook_config": {"uris": ["x"]}}, "webhook_config"),
        ({"previousInteractionId": "v1_z"}, "previous_interaction_id"),
        ({"generationConfig": {"maxOutputTokens": 9}}, "generation_config"),
        ({"generation_config": {"maxOutputTokens": 9}}, "generation_config.max_output_tokens"),
        ({"tools": [{"type": "retrieval"}]}, "tools"), ({"model": None}, "model"),
    ],
)  # fmt: skip
async def test_what_no_answer_tells_of_is_refused_by_its_name(
    stage: Stage, said: dict[str, Any], param: str
) -> None:
    got = await stage.ask(asks(**said))
    assert (got.status, got.reason) == (400, "invalid_request")
    assert json.loads(got.body)["error"]["details"][1]["fieldViolations"][0]["field"] == param
    for uri in (
        "https://generativelanguage.googleapis.com/v1beta/files/theirs",
        "gs://bucket/x",
        "files/theirs",
    ):
        part = {"type": "document", "uri": uri, "mime_type": "application/pdf"}
        assert (await stage.ask(asks(input=[part]))).reason == "object_not_found"
    assert not stage.upstream.received


async def test_a_file_is_sent_here_and_nowhere_else(stage: Stage) -> None:
    """The address that an upstream hands out is one of this gateway's, and an upload is its caller's."""
    theirs = b"https://upload.example/upload/v1beta/files?upload_id=u1&upload_protocol=resumable&key=secret"
    begun = b"x-goog-upload-url: %b\r\nx-goog-upload-control-url: %b\r\nx-goog-upload-status: active\r\n" % (
        theirs, theirs,
    )  # fmt: skip
    told = b'{"file":{"name":"files/f1","uri":"https://x/v1beta/files/f1","mimeType":"text/plain"}}'
    stage.upstream.scripts = [
        [answer(b"{}", begun)], [answer(told, b"x-goog-upload-status: final\r\n")], [answer(b"{}", begun)],
    ]  # fmt: skip
    uploaded = await sdk(stage).files.upload(file=io.BytesIO(b"not JSON"), config={"mime_type": "text/plain"})
    assert uploaded.name == "files/f1"
    start, sent = stage.upstream.received
    assert start.all(b"x-goog-upload-command") == [b"start"]
    assert (sent.target, sent.body) == (
        b"/upload/v1beta/files?upload_id=u1&upload_protocol=resumable",
        b"not JSON",
    )
    assert sent.all(b"x-goog-upload-command") == [b"upload, finalize"]
    assert (CALLER.organization_id, "files/f1") in stage.objects.kept
    said = b"content-type: application/json\r\nx-goog-upload-command: start\r\n"
    got = await stage.ask(post(b'{"file":{}}', b"/upload/v1beta/files", said))
    [address] = [value for name, value in got.headers if name == b"x-goog-upload-url"]
    assert address.startswith(
        b"http://gateway/upload/v1beta/files?upload_id=u1&upload_protocol=resumable&upload_pass="
    )
    assert KEY.encode() not in address
    for other in (address.replace(b"u1", b"u2"), address[:-1] + b"g", address.partition(b"&upload_pass")[0]):
        keyless = post(b"x", other.removeprefix(b"http://gateway")).replace(AUTH, b"")
        assert (await stage.ask(keyless)).reason == "invalid_api_key"
    assert not any(b"control" in name for name, _ in got.headers)
    assert [one.name async for one in await sdk(stage).files.list()] == ["files/f1"]
    for path in (b"/v1beta/files/f1", b"/v1beta/files/f1:download?alt=media"):
        assert (await stage.ask(get(path), "GET")).status == 200
    stage.directory.caller = replace(CALLER, organization_id=99)
    over = post(b"x", b"/upload/v1beta/files?upload_id=u1")
    named = post(b'{"file":{"name":"files/f1"}}', b"/upload/v1beta/files", said)
    raw = post(b"x", b"/upload/v1beta/files", b"x-goog-upload-protocol: raw\r\ncontent-type: text/plain\r\n")
    bucket = post(b'{"uris":["gs://bucket/x"]}', b"/v1beta/files:register")
    for request, reason in (
        (over, "object_not_found"), (bucket, "object_not_found"), (named, "invalid_request"),
        (raw, "invalid_request"),
    ):  # fmt: skip
        assert (await stage.ask(request)).reason == reason
    with pytest.raises(errors.ClientError, match="404"):
        await sdk(stage).files.get(name="f1")


async def test_what_is_kept_longer_or_has_more_in_it_counts_a_unit(stage: Stage) -> None:
    stage.objects.kept |= {
        (CALLER.organization_id, one) for one in ("cachedContents/c1", "fileSearchStores/s1", "files/f1")
    }
    await sdk(stage).caches.update(name="cachedContents/c1", config={"ttl": "900s"})
    await sdk(stage).file_search_stores.import_file(
        file_search_store_name="fileSearchStores/s1", file_name="files/f1"
    )
    assert [(one.units, one.tokens) for one in stage.counters.charges] == [(1, 0)] * 2
    theirs = post(b'{"fileName":"files/theirs"}', b"/v1beta/fileSearchStores/s1:importFile")
    assert (await stage.ask(theirs)).reason == "object_not_found"


@pytest.mark.parametrize(
    ("asked", "told", "tools", "cost"),
    [
        ({"sampleCount": 2, "sampleImageSize": "2K"}, 2, {"images.2k/auto": 2}, 120_000_000),
        ({}, 4, {"images.auto/auto": 4}, 240_000_000),
        # One was held back by the provider.
        ({"sampleCount": 3, "sampleImageSize": "1K"}, 2, {"images.1k/auto": 2}, 80_000_000),
    ],
)
async def test_predicted_pictures_cost_as_many_as_came(
    stage: Stage, asked: dict[str, Any], told: int, tools: dict[str, int], cost: int
) -> None:
    images = {"1k/standard": "0.04", "2k/standard": "0.06"}
    stage.directory.prices["imagen"] = read_price(price_row(id=6, model="imagen", images=images)).vector
    predictions = [{"bytesBase64Encoded": "x"}] * told + [{"raiFilteredReason": "no"}]
    stage.upstream.scripts = [[answer(json.dumps({"predictions": predictions}).encode())]]
    body = json.dumps({"instances": [{"prompt": "a cat"}], "parameters": asked}).encode()
    assert (await stage.ask(post(body, b"/v1beta/models/imagen:predict"))).status == 200
    assert (facts(stage).tools, facts(stage).cost, facts(stage).unpriced) == (tools, cost, "")


EMBEDDED = {"predictions": [{"embeddings": {"statistics": {"token_count": 7}}}]}


@pytest.mark.parametrize(
    ("told", "status", "charged"),
    [(EMBEDDED | {"error": {}}, b"200 OK", []), (EMBEDDED, b"500 x", []), ({}, b"200 OK", [11])],
)
async def test_failed_predictions_cost_nothing_and_missing_ones_their_input(
    stage: Stage, told: dict[str, Any], status: bytes, charged: list[int]
) -> None:
    stage.upstream.scripts = [[answer(json.dumps(told).encode(), status=status)]]
    await stage.ask(post(b'{"instances":[{"content":"a"}]}', b"/v1beta/models/gemini-x:predict"))
    assert [one.tokens for one in stage.counters.charges] == charged


async def test_predicted_embeddings_cost_their_tokens(stage: Stage) -> None:
    told = {"predictions": [{"embeddings": {"values": [], "statistics": {"token_count": n}}} for n in (7, 5)]}
    stage.upstream.scripts = [[answer(json.dumps(told).encode())]]
    body = b'{"instances":[{"content":"a"},{"content":"b"}]}'
    assert (await stage.ask(post(body, b"/v1beta/models/gemini-x:predict"))).status == 200
    assert (facts(stage).total, facts(stage).cost) == (12, 12_000)
    for wrong in (
        b'{"instances":[]}',
        b'{"instances":[{"x":1}]}',
        b'{"instances":[{"prompt":"a"}],"parameters":{"storageUri":"gs://b"}}',
    ):
        assert (await stage.ask(post(wrong, b"/v1beta/models/gemini-x:predict"))).reason == "invalid_request"
