"""What is too long to keep is read all the same, and a picture in it is no text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.calls.call import DEFAULT_BOUNDS, UsageBounds
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from tests.core.metering.recorded import JSON, SSE, call, frame

MIB = 1 << 20
RESPONSE: dict[str, Any] = {
    "status": "completed",
    "model": "m-1",
    "service_tier": "priority",
    "output": [
        {"type": "image_generation_call", "result": ""},
        {"type": "web_search_call", "action": {"type": "search"}},
    ],
    "usage": {"input_tokens": 1000, "output_tokens": 20_000, "total_tokens": 21_000},
}
CHAT: dict[str, Any] = {
    "model": "m-1",
    "choices": [{"index": 0, "message": {"audio": {"data": ""}}, "finish_reason": "stop"}],
    "service_tier": "batch",
    "usage": {"prompt_tokens": 1000, "completion_tokens": 20_000, "total_tokens": 21_000},
}
GEMINI: dict[str, Any] = {
    "candidates": [
        {
            "content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]},
            "finishReason": "STOP",
            "groundingMetadata": {"webSearchQueries": ["a", "b"]},
        }
    ],
    "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 20_000, "totalTokenCount": 21_000},
    "modelVersion": "m-1",
}
COMPLETED = frame({"type": "response.completed", "response": RESPONSE}, "response.completed")
ANSWERS = {
    "responses": ("openai_responses", JSON, json.dumps(RESPONSE).encode()),
    "responses events": ("openai_responses", SSE, COMPLETED),
    "responses events without names": (
        "openai_responses", SSE, frame({"type": "response.completed", "response": RESPONSE}),
    ),
    "chat": ("openai_chat", JSON, json.dumps(CHAT).encode()),
    "gemini": ("gemini_generate", JSON, json.dumps(GEMINI).encode()),
    "gemini events": ("gemini_stream", SSE, frame(GEMINI)),
    "gemini array": ("gemini_stream", JSON, b"[" + json.dumps(GEMINI).encode() + b"]"),
}  # fmt: skip


def with_picture(answer: bytes, size: int) -> bytes:
    return answer.replace(b'"result": ""', b'"result": "%s"' % (b"A" * size)).replace(
        b'"data": ""', b'"data": "%s"' % (b"A" * size)
    )


def fed(meter: str, content_type: bytes, body: bytes, bounds: UsageBounds = DEFAULT_BOUNDS) -> Meter:
    made = make_meter(
        call(meter, streamed=content_type == SSE or meter == "gemini_stream"), 200, content_type, b"", bounds
    )
    passed: list[bytes] = []
    for at in range(0, len(body), 1 << 16):
        passed.append(made.feed(body[at : at + (1 << 16)]))
        assert made.kept <= 2 * bounds.event_bytes_max + (1 << 17)
        assert not made.surplus
    rest = made.finish()
    assert rest
    assert b"".join(passed) + rest == body
    return made


@pytest.mark.parametrize("size", [100, 3 * MIB, 5 * MIB, 9 * MIB])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_with_a_picture_is_charged_what_it_reports(answer: str, size: int) -> None:
    meter, content_type, body = ANSWERS[answer]
    made = fed(meter, content_type, with_picture(body, size))
    usage, detail = made.usage(), made.detail
    assert (usage.input, usage.output, usage.total, usage.estimated) == (1000, 20_000, 21_000, False)
    assert detail.model == "m-1"
    searches = {} if meter == "openai_chat" else {"web_search": 2 if meter.startswith("gemini") else 1}
    assert {name: times for name, times in detail.tools.items() if name == "web_search"} == searches
    assert detail.service_tier == {"r": "priority", "c": "batch", "g": ""}[answer[0]]


def test_the_end_of_a_long_last_event_waits() -> None:
    body = with_picture(COMPLETED, 5 * MIB)
    made = make_meter(call("openai_responses"), 200, SSE)
    passed = made.feed(body[: 5 * MIB]) + made.feed(body[5 * MIB :])
    assert len(passed) > 4 * MIB
    assert b'"usage"' not in passed
    assert passed + made.finish() == body


def test_a_picture_is_no_text_and_a_long_text_is_one() -> None:
    bounds = UsageBounds(event_bytes_max=10_000)
    for name, counted in (("partial_image_b64", 0), ("delta", 40_000)):
        event = frame({"type": "x", "ignored": 1, name: "A" * 40_000})
        made = make_meter(call("openai_responses"), 200, SSE, b"", bounds)
        for at in range(0, len(event), 999):
            made.feed(event[at : at + 999])
        made.finish()
        assert made.usage().output == counted // 4


def test_of_what_is_dense_as_well_the_ends_are_read() -> None:
    dense = {"model": "m-1", "data": [["x" * 9] * 100] * 1500, "service_tier": "flex", "usage": CHAT["usage"]}
    made = fed("openai_chat", JSON, json.dumps(dense).encode(), UsageBounds(kept_bytes_max=MIB))
    assert made.usage().total == 21_000
    assert (made.detail.model, made.detail.service_tier) == ("m-1", "flex")
    event = {"type": "response.completed", "response": {**RESPONSE, "output": dense["data"]}}
    made = fed("openai_responses", SSE, frame(event), UsageBounds(event_bytes_max=MIB))
    assert made.usage().total == 21_000
    assert not made.usage().estimated
