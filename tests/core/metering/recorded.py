"""Streams in the shapes the providers send, with what they use and what a client should get.

The frames follow the providers' documentation of their streaming answers; identifiers and
texts are made up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from gateway.core.calls.call import Body, CallRequest, CallSpec
from gateway.core.model import Family, TokenUsage

SSE = b"text/event-stream; charset=utf-8"
JSON = b"application/json"


@dataclass(frozen=True)
class Recorded:
    """One answer: `passed` is what the client gets, `frames` the parts it was sent in."""

    name: str
    call: CallRequest
    frames: list[bytes]
    passed: bytes
    usage: TokenUsage
    content_type: bytes = SSE

    @property
    def stream(self) -> bytes:
        return b"".join(self.frames)


def call(meter: str, *, streamed: bool = True, strip: bool = False, choices: int = 1) -> CallRequest:
    family = Family(meter.partition("_")[0])
    most = 0 if "embed" in meter else None
    return CallRequest(
        meter, family, Body(b"{}"), CallSpec("model-1", streamed, choices=choices), most, 300, strip
    )


def frame(data: object, event: str = "", end: str = "\n") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    lines = [f"event: {event}"] if event else []
    return (end.join([*lines, f"data: {text}"]) + end * 2).encode()


def chat_chunk(**fields: object) -> dict[str, object]:
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "model-1",
        **fields,
    }


def delta(text: str, index: int = 0) -> dict[str, object]:
    return chat_chunk(
        choices=[{"index": index, "delta": {"content": text}, "finish_reason": None}], usage=None
    )


CHAT_USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
}
CHAT_USED = TokenUsage(19, 10, 4, 3, 29, 1, True, False)
CHAT_FRAMES = [
    b": a comment\n\n",
    frame(chat_chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}], usage=None)),
    frame(delta("Tolls ")),
    frame(delta('are öld \U0001f6e3, "usage":{}')),
    frame(chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None)),
]
CHAT_END = frame(chat_chunk(choices=[], usage=CHAT_USAGE))
DONE = frame("[DONE]")
CHAT = [*CHAT_FRAMES, CHAT_END, DONE]

COMPLETION_END = {
    "id": "cmpl-1",
    "object": "text_completion",
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7},
}
COMPLETION = [
    frame({"id": "cmpl-1", "object": "text_completion", "choices": [{"index": 0, "text": "One"}]}),
    frame({"id": "cmpl-1", "object": "text_completion", "choices": [{"index": 1, "text": " two"}]}),
    frame(COMPLETION_END),
    DONE,
]


def response(kind: str, **fields: object) -> bytes:
    return frame({"type": kind, **fields}, kind)


RESPONSE_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}
RESPONSE_START = [
    response(
        "response.created",
        sequence_number=0,
        response={"id": "resp_1", "object": "response", "status": "in_progress", "usage": None},
    ),
    response(
        "response.output_item.added",
        sequence_number=1,
        output_index=0,
        item={"type": "message", "content": []},
    ),
    response("response.output_text.delta", sequence_number=2, output_index=0, delta="Tolls"),
    response("response.output_text.delta", sequence_number=3, output_index=0, delta=" fall."),
]


def response_end(status: str) -> list[bytes]:
    end = {"id": "resp_1", "object": "response", "status": status, "usage": RESPONSE_USAGE}
    return [*RESPONSE_START, response(f"response.{status}", sequence_number=4, response=end)]


RESPONSE_USED = TokenUsage(36, 87, 8, 64, 123, 1, True, False)


def message(kind: str, **fields: object) -> bytes:
    return frame({"type": kind, **fields}, kind)


MESSAGE_START = message(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 40,
            "output_tokens": 1,
        },
    },
)
MESSAGE_TEXT = [
    message("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    message("ping"),
    message("content_block_delta", index=0, delta={"type": "text_delta", "text": "Pay here"}),
    message("content_block_delta", index=0, delta={"type": "text_delta", "text": " please."}),
]
MESSAGE_END = [
    message("content_block_stop", index=0),
    message("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 15}),
    message("message_stop"),
]
MESSAGE = [MESSAGE_START, *MESSAGE_TEXT, *MESSAGE_END]
MESSAGE_USED = TokenUsage(165, 15, 40, 0, 180, 1, True, False)
MESSAGE_TOOL = [
    MESSAGE_START,
    message(
        "content_block_start",
        index=0,
        content_block={"type": "tool_use", "id": "t", "name": "f", "input": {}},
    ),
    message("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a":1}'}),
    message("content_block_stop", index=0),
    message(
        "message_delta",
        delta={"stop_reason": "tool_use"},
        usage={
            "input_tokens": 25,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 40,
            "output_tokens": 9,
        },
    ),
    message("message_stop"),
]


def candidate(text: str, **usage: int) -> dict[str, object]:
    return {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}],
        "usageMetadata": usage,
    }


GEMINI_ITEMS = [
    candidate("Toll", promptTokenCount=8, totalTokenCount=8),
    candidate(
        'gate { "}" [', promptTokenCount=8, candidatesTokenCount=3, thoughtsTokenCount=20, totalTokenCount=31
    ),
    {
        "candidates": [{"content": {"parts": [{"text": "."}]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": 8,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 20,
            "cachedContentTokenCount": 2,
            "totalTokenCount": 33,
        },
    },
]
GEMINI_EVENTS = [frame(item, end="\r\n") for item in GEMINI_ITEMS]
GEMINI_ARRAY = [
    prefix + json.dumps(item, indent=2).encode()
    for prefix, item in zip([b"[", b",\r\n", b",\r\n"], GEMINI_ITEMS, strict=True)
] + [b"\n]"]
GEMINI_USED = TokenUsage(8, 25, 2, 20, 33, 1, True, False)

COMPLETION_USED = TokenUsage(5, 7, 0, 0, 12, 1, True, False)
MESSAGE_TOOL_USED = TokenUsage(165, 9, 40, 0, 174, 1, True, False)


def whole(
    name: str, asked: CallRequest, frames: list[bytes], usage: TokenUsage, content_type: bytes = SSE
) -> Recorded:
    """A stream that passes as it came."""
    return Recorded(name, asked, frames, b"".join(frames), usage, content_type)


RECORDED = [
    whole("chat, asked", call("openai_chat"), CHAT, CHAT_USED),
    Recorded(
        "chat, not asked", call("openai_chat", strip=True), CHAT, b"".join([*CHAT_FRAMES, DONE]), CHAT_USED
    ),
    Recorded(
        "completion",
        call("openai_completions", strip=True, choices=2),
        COMPLETION,
        b"".join([*COMPLETION[:2], DONE]),
        COMPLETION_USED,
    ),
    whole("response completed", call("openai_responses"), response_end("completed"), RESPONSE_USED),
    whole("response incomplete", call("openai_responses"), response_end("incomplete"), RESPONSE_USED),
    whole("response failed", call("openai_responses"), response_end("failed"), RESPONSE_USED),
    whole("message", call("anthropic_messages"), MESSAGE, MESSAGE_USED),
    whole("message, tool", call("anthropic_messages"), MESSAGE_TOOL, MESSAGE_TOOL_USED),
    whole("gemini events", call("gemini_stream"), GEMINI_EVENTS, GEMINI_USED),
    whole("gemini array", call("gemini_stream"), GEMINI_ARRAY, GEMINI_USED, JSON),
]
