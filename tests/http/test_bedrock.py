"""Bedrock's calls: the model is in the path, frames are read as they pass, and reports of use are charged."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from botocore.eventstream import EventStreamBuffer

from gateway.core.accounts.call_facts import CallFacts, read_facts
from gateway.core.calls.routes import ModelRule, ModelTarget
from gateway.core.families import bedrock
from gateway.core.metering.eventstream import frame_of
from tests.http.fakes import CALLER, CHAT, ROUTES, answer, chunks, post
from tests.http.stage import Answer, Close, Stage, Step, staged

BEDROCK = (*ROUTES, *bedrock.FAMILY.brings("up"))
CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
USAGE = {
    "inputTokens": 30, "outputTokens": 12, "totalTokens": 1042, "cacheReadInputTokens": 900,
    "cacheWriteInputTokens": 100,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 40}, {"ttl": "5m", "inputTokens": 60}],
}  # fmt: skip
ASKED = {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": 50}}
INVOKED = {
    "anthropic_version": "bedrock-2023-05-31", "max_tokens": 50,
    "messages": [{"role": "user", "content": "hi"}],
}  # fmt: skip
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def event(name: str, said: object, kind: bytes = b"event") -> bytes:
    headers = [(b":%b-type" % kind, name.encode()), (b":content-type", b"application/json")]
    return frame_of([*headers, (b":message-type", kind)], json.dumps(said).encode())


def chunk(said: object) -> bytes:
    return event("chunk", {"bytes": base64.b64encode(json.dumps(said).encode()).decode(), "p": "abc"})


CONVERSED = (
    event("messageStart", {"role": "assistant", "p": "ab"}),
    event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hello"}, "p": "abcd"}),
    event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": " there"}}),
    event("contentBlockStop", {"contentBlockIndex": 0}),
    event("messageStop", {"stopReason": "end_turn"}),
    event("metadata", {"usage": USAGE, "metrics": {"latencyMs": 5}}),
)
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [],
}
STREAMED = (
    chunk(
        {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 30, "output_tokens": 1}}}
    ),
    chunk({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    chunk({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
    chunk({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}}),
    chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 30}}),
)


async def ask(stage: Stage, path: str, body: object, *script: Step, fields: bytes = b"") -> Answer:
    if script:
        stage.upstream.scripts.append([*script])
    return await stage.ask(post(json.dumps(body).encode(), path.encode(), fields))


def charged(stage: Stage) -> CallFacts:
    [charge] = stage.counters.charges
    facts = read_facts(charge.metadata)
    assert facts is not None
    return facts


async def test_a_conversation_is_charged_as_it_reports() -> None:
    told = json.dumps({"output": {"message": {}}, "stopReason": "end_turn", "usage": USAGE}).encode()
    async with staged(routes=BEDROCK) as stage:
        got = await ask(stage, f"/model/{CLAUDE.replace(':', '%3A')}/converse", ASKED, answer(told))
        assert (got.status, got.body) == (200, told)
        assert charged(stage).counts[:5] == (30, 900, 60, 40, 12)
        assert stage.upstream.received[0].target == f"/model/{CLAUDE.replace(':', '%3A')}/converse".encode()


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
async def test_frames_are_passed_whole_and_the_last_ones_once_they_are_charged(size: int) -> None:
    for path, frames, tokens in (
        ("converse-stream", CONVERSED, 1042),
        ("invoke-with-response-stream", STREAMED, 42),
    ):
        body = b"".join(frames)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        async with staged(routes=BEDROCK) as stage:
            asked = ASKED if path.startswith("converse") else INVOKED
            got = await ask(stage, f"/model/{CLAUDE}/{path}", asked, HEAD, chunks(*pieces))
            assert (got.body, got.complete) == (body, True)
            assert [one.tokens for one in stage.counters.charges] == [tokens]
            assert not charged(stage).estimated
            read = EventStreamBuffer()
            read.add_data(got.body)
            assert len(list(read)) == len(frames)


LIE = CONVERSED[1][:3] + b"\xff" + CONVERSED[1][4:]
FLIPPED = CONVERSED[1][:-9] + b"X" + CONVERSED[1][-8:]
HUGE = b"\x7f\xff\xff\xff" + bytes(44)


@pytest.mark.parametrize(
    "broken",
    [LIE, FLIPPED, HUGE, b"{}" * 40, CONVERSED[1][:50]],
    ids=["length", "checksum", "huge", "json", "half"],
)
async def test_what_is_no_frame_is_charged_at_the_ceiling(broken: bytes) -> None:
    async with staged(routes=BEDROCK) as stage:
        frames = (CONVERSED[0], broken)
        got = await ask(stage, f"/model/{CLAUDE}/converse-stream", ASKED, HEAD, chunks(*frames))
        assert got.body == b"".join(frames)
        assert charged(stage).estimated
        assert charged(stage).counts[4] >= 50


async def test_a_stream_that_breaks_off_is_charged_for_what_came() -> None:
    async with staged(routes=BEDROCK) as stage:
        cut = chunks(*CONVERSED[:3])[: -len(b"0\r\n\r\n")]
        got = await ask(stage, f"/model/{CLAUDE}/converse-stream", ASKED, HEAD, cut, Close())
        assert not got.complete
        assert charged(stage).estimated
        assert 0 < charged(stage).counts[4] < 50


async def test_an_exception_in_a_stream_is_passed_on() -> None:
    failed = event("throttlingException", {"message": "enough"}, b"exception")
    async with staged(routes=BEDROCK) as stage:
        got = await ask(stage, f"/model/{CLAUDE}/converse-stream", ASKED, HEAD, chunks(CONVERSED[0], failed))
        assert got.body == CONVERSED[0] + failed


# A file that the upstream's own credentials could read.
BUCKET = {
    "role": "user",
    "content": [{"document": {"format": "pdf", "source": {"s3Location": {"uri": "s3://theirs/a.pdf"}}}}],
}
REFUSED: list[tuple[str, dict[str, object], int, str]] = [
    ("converse", {**ASKED, "model": "another"}, 400, "model"),
    ("invoke", {**INVOKED, "model": "another"}, 400, "model"),
    ("invoke", {**INVOKED, "stream": True}, 400, "stream"),
    ("invoke", {"inputText": "hi"}, 400, "anthropic_version"),
    ("converse", {**ASKED, "guardrailConfig": {"guardrailIdentifier": "a"}}, 400, "guardrailConfig"),
    ("converse", {**ASKED, "promptVariables": {}}, 400, "promptVariables"),
    ("converse", {**ASKED, "additionalModelRequestFields": {"max_tokens": 9}}, 400, "additionalModel"),
    ("converse", {**ASKED, "toolConfig": {"tools": [{"systemTool": {"name": "a"}}]}}, 400, "systemTool"),
    ("converse", {**ASKED, "inferenceConfig": {"maxtokens": 9}}, 400, "maxTokens"),
    ("converse", {**ASKED, "system": [{"text": "a"}], "messages": [BUCKET]}, 404, "No stored object"),
    ("count-tokens", ASKED, 404, "No route"),
    ("async-invoke", ASKED, 404, "No route"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "names"), REFUSED)
async def test_what_is_not_metered_is_refused_by_name(
    path: str, body: dict[str, object], status: int, names: str
) -> None:
    async with staged(routes=BEDROCK) as stage:
        got = await ask(stage, f"/model/{CLAUDE}/{path}", body)
        said = json.loads(got.body)
        assert (got.status, set(said)) == (status, {"code", "message", "request_id"})
        assert names in said["message"]
        assert stage.upstream.received == []


async def test_fields_of_amazons_do_not_pass() -> None:
    fields = (
        b"x-amz-date: 20200101T000000Z\r\nx-amz-security-token: mine\r\nx-amz-content-sha256: a\r\n"
        b"amz-sdk-request: attempt=1\r\naccept: application/cbor\r\nX-Amzn-Bedrock-Accept: a/b\r\n"
        b"X-Amzn-Bedrock-Request-Metadata: {}\r\n"
    )
    async with staged(routes=BEDROCK) as stage:
        assert (await ask(stage, f"/model/{CLAUDE}/invoke", INVOKED, fields=fields)).status == 200
        names = {name.lower() for name, _ in stage.upstream.received[0].headers}
        assert not [name for name in names if name.startswith((b"x-amz", b"amz-"))]
        assert b"accept" not in names


@pytest.mark.parametrize(
    "name",
    ["GuardrailIdentifier", "GuardrailVersion", "Trace", "PerformanceConfig-Latency", "Service-Tier", "New"],
)
async def test_a_field_that_guards_a_call_or_chooses_is_refused_by_name(name: str) -> None:
    async with staged(routes=BEDROCK) as stage:
        fields = f"X-Amzn-Bedrock-{name}: x\r\n".encode()
        got = await ask(stage, f"/model/{CLAUDE}/invoke", INVOKED, fields=fields)
        assert got.status == 400
        assert f"x-amzn-bedrock-{name.lower()} is not accepted" in json.loads(got.body)["message"]
        assert stage.upstream.received == []


async def test_a_guardrail_of_a_call_of_another_api_is_refused() -> None:
    async with staged() as stage:  # Bedrock serves OpenAI's API too
        fields = b"X-Amzn-Bedrock-GuardrailIdentifier: g\r\n"
        assert (await stage.ask(post(CHAT, b"/v1/chat/completions", fields))).status == 400
        assert stage.upstream.received == []


ARN = "arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.anthropic.claude"


async def test_a_list_of_a_key_holds_a_model_however_its_path_is_written() -> None:
    async with staged(routes=BEDROCK) as stage:
        stage.directory.caller = replace(CALLER, models=frozenset({CLAUDE}))
        for written in (CLAUDE, CLAUDE.replace(":", "%3A"), CLAUDE.replace("a", "%61")):
            assert (await ask(stage, f"/model/{written}/converse", ASKED)).status == 200
        for written in (ARN, ARN.replace("/", "%2F").replace(":", "%3A"), CLAUDE.replace(":", "%253A")):
            assert (await ask(stage, f"/model/{written}/converse", ASKED)).reason == "model_not_allowed"
        assert len(stage.upstream.received) == 3


async def test_a_configured_name_is_sent_as_the_profile_it_stands_for() -> None:
    async with staged(
        routes=BEDROCK, models=(ModelRule("sonnet", False, (ModelTarget("up", ARN),)),)
    ) as stage:
        assert (await ask(stage, "/model/sonnet/converse", ASKED)).status == 200
        sent = stage.upstream.received[0].target
        assert sent == f"/model/{ARN.replace('/', '%2F').replace(':', '%3A')}/converse".encode()
