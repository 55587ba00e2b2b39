"""Whose API always reports its use, and does not, is charged all that the call could use."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.routes import Route
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from gateway.core.model import Family, TokenUsage
from tests.core.metering.recorded import SSE, call, frame

JSON = b"application/json"
GEMINI: dict[str, Any] = {
    "candidates": [{"content": {"parts": [{"text": "Tolls."}]}, "finishReason": "STOP", "index": 0}]
}
MESSAGE: dict[str, Any] = {"type": "message", "content": [{"type": "text", "text": "Tolls."}]}
ENDLESS = 65_536


def asked(
    meter: str, *, output_max: int | None = 500, choices: int = 1, streamed: bool = False
) -> CallRequest:
    made = call(meter, streamed=streamed, choices=choices)
    made.output_max, made.input_bytes, made.reports = output_max, 300, True
    Estimator().hold(made, 1, "any")
    return made


def used(
    made: CallRequest, *parts: bytes, content_type: bytes = JSON, ended: bool = True, coding: bytes = b""
) -> TokenUsage:
    meter: Meter = make_meter(made, 200, content_type, coding)
    for part in parts:
        meter.feed(part)
    if ended:
        meter.finish()
    return meter.usage()


@pytest.mark.parametrize(
    ("meter", "answer"),
    [
        ("gemini_generate", GEMINI),
        ("gemini_generate", {}),
        ("gemini_generate", {**GEMINI, "usageMetadata": {}}),
        ("gemini_generate", {**GEMINI, "usageMetadata": None}),
        ("gemini_generate", {**GEMINI, "usageMetadata": {"promptTokenCount": 3}}),
        ("gemini_generate", {**GEMINI, "usageMetadata": {"candidatesTokenCount": 3, "promptTokenCount": 1}}),
        ("gemini_generate", {**GEMINI, "usage_metadata": {"total_token_count": 3}}),
        ("anthropic_messages", MESSAGE),
        ("anthropic_messages", {**MESSAGE, "usage": {}}),
        ("anthropic_messages", {**MESSAGE, "usage": {"input_tokens": 100}}),
        ("anthropic_messages", {**MESSAGE, "usage": {"output_tokens": 1}}),
        ("openai_chat", {"choices": []}),  # where its route says so
    ],
)
@pytest.mark.parametrize("coding", [b"", b"gzip"])
def test_a_complete_answer_without_its_use_is_charged_the_ceiling(
    meter: str, answer: dict[str, Any], coding: bytes
) -> None:
    body = json.dumps(answer).encode()
    usage = used(asked(meter), gzip.compress(body) if coding else body, coding=coding)
    assert (usage.input, usage.output, usage.total) == (150, 500, 650)
    assert (usage.estimated, usage.reported) == (True, False)


def test_without_a_stated_maximum_it_is_what_the_model_can_produce() -> None:
    usage = used(asked("gemini_generate", output_max=None, choices=2), json.dumps(GEMINI).encode())
    assert usage.total == 150 + 2 * ENDLESS


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("reports", [True, False])
def test_what_is_counted_is_never_more_than_was_stated(*, reports: bool, ended: bool) -> None:
    made = asked("gemini_generate", choices=3)
    made.reports = reports
    body = json.dumps({"candidates": [{"text": "word " * 10_000}]}).encode()
    assert used(made, body, ended=ended).output == 3 * 500


@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_a_stream_whose_use_is_masked(content_type: bytes) -> None:
    text = json.dumps(GEMINI).encode()
    parts = [b"data: %b\r\n\r\n" % text] * 2 if content_type == SSE else [b"[%b,\r\n%b]" % (text, text)]
    whole = used(asked("gemini_stream", streamed=True), *parts, content_type=content_type)
    assert whole.total == 650
    broken = used(asked("gemini_stream", streamed=True), *parts, content_type=content_type, ended=False)
    assert 100 < broken.total < 120


def test_a_stream_of_messages_without_its_last_report() -> None:
    start = frame({"type": "message_start", "message": {"usage": {"input_tokens": 70, "output_tokens": 1}}})
    delta = frame({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Tolls."}})
    stop = frame({"type": "message_stop"})
    said = frame({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}})
    parts = start, delta
    masked = used(asked("anthropic_messages", streamed=True), *parts, stop, content_type=SSE)
    assert (masked.input, masked.output, masked.estimated) == (150, 500, True)
    reported = used(asked("anthropic_messages", streamed=True), *parts, said, stop, content_type=SSE)
    assert (reported.input, reported.output, reported.estimated) == (70, 9, False)
    broken = used(asked("anthropic_messages", streamed=True), *parts, content_type=SSE, ended=False)
    assert broken.total < 80


@pytest.mark.parametrize(
    "metadata",
    [
        {"promptTokenCount": 3, "totalTokenCount": 3},
        {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 9},
    ],
)
def test_a_blocked_prompt_that_is_reported_costs_what_it_says(metadata: dict[str, int]) -> None:
    answer = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": metadata}
    for meter, content_type in (("gemini_generate", JSON), ("gemini_stream", SSE)):
        body = json.dumps(answer).encode()
        part = b"data: %b\n\n" % body if content_type == SSE else body
        usage = used(asked(meter, streamed=content_type == SSE), part, content_type=content_type)
        assert (usage.total, usage.estimated) == (metadata["totalTokenCount"], False)


@pytest.mark.parametrize("body", [b"", b'{"error":{"code":500}}'])
def test_what_is_no_answer_costs_nothing(body: bytes) -> None:
    assert used(asked("gemini_generate"), body) == TokenUsage(units=0)


@pytest.mark.parametrize("meter", ["gemini_generate", "gemini_stream", "anthropic_messages"])
@pytest.mark.parametrize("content_type", [JSON, SSE, b"text/plain", b"application/x-ndjson"])
@pytest.mark.parametrize("coding", [b"", b"gzip", b"br"])
def test_what_nobody_can_read_is_charged_the_ceiling(meter: str, content_type: bytes, coding: bytes) -> None:
    for body in (b"<html>", b"[1]", b"\xff", b'{"a":1}\n{"a":2}'):
        for streamed in (False, True):
            raw = gzip.compress(body) if coding == b"gzip" else body
            usage = used(asked(meter, streamed=streamed), raw, content_type=content_type, coding=coding)
            assert (usage.input, usage.output, usage.estimated) == (150, 500, True)


@pytest.mark.parametrize(
    ("meter", "stated", "reports"),
    [
        ("gemini_generate", "", True), ("gemini_stream", "", True), ("anthropic_messages", "", True),
        ("anthropic_messages", "maybe", False), ("gemini_embed", "", False), ("openai_chat", "", False),
        ("openai_chat", "always", True), ("openai_responses", "", False),
    ],
)  # fmt: skip
def test_a_route_may_say_whether_its_upstream_always_reports(meter: str, stated: str, reports: bool) -> None:
    from gateway.core.calls.parsing import read_call

    route = Route(("POST",), "/x", "u", "s", Family(meter.partition("_")[0]), meter, usage=stated)
    assert read_call(route, {"model": "m"}, b'{"model":"m"}').reports is reports
