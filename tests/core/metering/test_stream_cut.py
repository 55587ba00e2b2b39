"""A stream cut where its quota ended is well-formed to the client, in each API's own shape."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from gateway.core.calls.call import UsageBounds
from gateway.core.metering.meters import make_meter
from gateway.core.metering.stream import Splitter, data_of
from tests.core.metering.recorded import (
    CHAT_FRAMES,
    GEMINI_ARRAY,
    GEMINI_EVENTS,
    JSON,
    MESSAGE_START,
    MESSAGE_TEXT,
    RESPONSE_START,
    SSE,
    call,
)  # fmt: skip


def documents(stream: bytes) -> list[Any]:
    return [
        json.loads(data)
        for event in Splitter().feed(stream)
        if (data := data_of(event)) not in (b"", b"[DONE]")
    ]


def cut(meter: str, frames: list[bytes], *, strip: bool = False, content_type: bytes = SSE) -> bytes:
    made = make_meter(call(meter, strip=strip), 200, content_type)
    for frame in frames:
        made.feed(frame)
    return made.cut()


def test_chat() -> None:
    end = cut("openai_chat", CHAT_FRAMES[:3], strip=True)
    assert end.endswith(b"data: [DONE]\n\n")
    (last,) = documents(end)
    assert last["id"] == "chatcmpl-7"
    assert last["object"] == "chat.completion.chunk"
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length", "logprobs": None}]


def test_chat_whose_client_asked_for_usage_gets_it() -> None:
    _, last = documents(cut("openai_chat", CHAT_FRAMES[:3]))
    assert last["choices"] == []
    assert (
        last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    )


def test_completions() -> None:
    (last,) = documents(
        cut("openai_completions", [b'data: {"id":"c","choices":[{"text":"x"}]}\n\n'], strip=True)
    )
    assert last["choices"][0]["text"] == ""
    assert last["choices"][0]["finish_reason"] == "length"


def test_responses() -> None:
    (last,) = documents(cut("openai_responses", RESPONSE_START))
    assert last["type"] == "response.incomplete"
    assert last["sequence_number"] == 4
    assert last["response"]["id"] == "resp_1"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["usage"]["output_tokens"] >= 2


def test_messages() -> None:
    end = cut("anthropic_messages", [MESSAGE_START, *MESSAGE_TEXT])
    assert [document["type"] for document in documents(end)] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert documents(end)[1]["delta"]["stop_reason"] == "max_tokens"
    assert end.count(b"event: ") == 3
    after_ping = [MESSAGE_START, *MESSAGE_TEXT[:2]]
    assert documents(cut("anthropic_messages", after_ping))[0]["type"] == "content_block_stop"
    assert documents(cut("anthropic_messages", [MESSAGE_START]))[0]["type"] == "message_delta"


def test_gemini_events_and_array() -> None:
    (last,) = documents(cut("gemini_stream", GEMINI_EVENTS[:2]))
    assert last["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert last["usageMetadata"]["totalTokenCount"] >= 31
    whole = json.loads(b"".join(GEMINI_ARRAY[:2]) + cut("gemini_stream", GEMINI_ARRAY[:2], content_type=JSON))
    assert len(whole) == 3
    assert whole[2]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert len(json.loads(cut("gemini_stream", [], content_type=JSON))) == 1


@pytest.mark.parametrize("strip", [False, True])
def test_part_of_an_event_has_not_passed_and_is_left_out(strip: bool) -> None:
    frames = [*CHAT_FRAMES[:2], CHAT_FRAMES[2][:20]]
    assert cut("openai_chat", frames, strip=strip).startswith(b"data: {")
    assert len(json.loads(cut("gemini_stream", [GEMINI_ARRAY[0][:-1]], content_type=JSON))) == 1


@pytest.mark.parametrize(
    ("meter", "content_type", "frame"),
    [("openai_chat", SSE, CHAT_FRAMES[2][:60]), ("gemini_stream", JSON, GEMINI_ARRAY[0][:60])],
)
def test_no_cut_within_an_event_that_was_too_long_to_keep(
    meter: str, content_type: bytes, frame: bytes
) -> None:
    made = make_meter(call(meter), 200, content_type, b"", UsageBounds(event_bytes_max=50))
    assert len(made.feed(frame)) > 40
    assert made.cut() == b""


def test_no_cut_within_a_document_or_a_compressed_answer() -> None:
    assert make_meter(call("openai_chat", streamed=False), 200, JSON).cut() == b""
    made = make_meter(call("openai_chat"), 200, SSE, b"gzip")
    made.feed(gzip.compress(CHAT_FRAMES[2]))
    assert made.cut() == b""
