"""What the demo upstream answers in the shapes of OpenAI: chat, completions, embeddings. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

from gateway.local.demo.shapes import CREATED, Turn, sse

VECTOR = (0.125, -0.5, 0.25)
TOOL = {"name": "look_up", "arguments": '{"place":"here"}'}


def usage(turn: Turn) -> dict[str, Any]:
    """Use as chat and completions report it."""
    return {
        "prompt_tokens": turn.input,
        "completion_tokens": turn.output,
        "total_tokens": turn.input + turn.output,
        "prompt_tokens_details": {"cached_tokens": turn.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": turn.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _reported(turn: Turn) -> dict[str, Any]:
    return {"usage": usage(turn)} if turn.reports else {}


def _finish(turn: Turn) -> str:
    if turn.calls_tool:
        return "tool_calls"
    return "length" if turn.stopped_by_length else "stop"


def chat(turn: Turn) -> dict[str, Any]:
    """A chat completion."""
    turn.finish()
    message: dict[str, Any] = {"role": "assistant", "content": turn.text, "refusal": None, "annotations": []}
    if turn.calls_tool:
        message |= {
            "content": None,
            "tool_calls": [{"id": f"call_{turn.id}", "type": "function", "function": TOOL}],
        }
    return {
        "id": f"chatcmpl-{turn.id}",
        "object": "chat.completion",
        "created": CREATED,
        "model": turn.model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": _finish(turn)}
            for index in range(turn.choices)
        ],
        **_reported(turn),
        "service_tier": "default",
        "system_fingerprint": "fp_demo",
    }


def chat_stream(turn: Turn, *, with_usage: bool) -> Iterator[bytes]:
    """A chat completion in chunks; the usage frame only when asked for."""
    head = {
        "id": f"chatcmpl-{turn.id}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": turn.model,
    }
    extra: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**head, "choices": [choice], **extra})

    for index in range(turn.choices):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    if turn.calls_tool:
        function = {"name": TOOL["name"], "arguments": ""}
        called = {"index": 0, "id": f"call_{turn.id}", "type": "function", "function": function}
        yield chunk(0, {"tool_calls": [called]})
        for piece in (TOOL["arguments"][:9], TOOL["arguments"][9:]):
            yield chunk(0, {"tool_calls": [{"index": 0, "function": {"arguments": turn.say(piece)}}]})
    else:
        for piece in turn.pieces:
            for index in range(turn.choices):
                yield chunk(index, {"content": turn.say(piece)})
    if turn.end:
        yield sse({"error": {"message": "The server had an error.", "type": "server_error", "code": None}})
        return
    turn.finish()
    for index in range(turn.choices):
        yield chunk(index, {}, _finish(turn))
    if with_usage and turn.reports:
        yield sse({**head, "choices": [], "usage": usage(turn)})
    yield sse("[DONE]")


def completion(turn: Turn) -> dict[str, Any]:
    """A text completion."""
    turn.finish()
    return {
        "id": f"cmpl-{turn.id}",
        "object": "text_completion",
        "created": CREATED,
        "model": turn.model,
        "choices": [
            {"index": index, "text": turn.text, "logprobs": None, "finish_reason": _finish(turn)}
            for index in range(turn.choices)
        ],
        **_reported(turn),
    }


def completion_stream(turn: Turn, *, with_usage: bool) -> Iterator[bytes]:
    """A text completion in chunks."""
    head = {"id": f"cmpl-{turn.id}", "object": "text_completion", "created": CREATED, "model": turn.model}

    def chunk(index: int, text: str, finish: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        return sse({**head, "choices": [choice]})

    for piece in turn.pieces:
        for index in range(turn.choices):
            yield chunk(index, turn.say(piece))
    if turn.end:
        yield sse({"error": {"message": "The server had an error.", "type": "server_error", "code": None}})
        return
    turn.finish()
    for index in range(turn.choices):
        yield chunk(index, "", _finish(turn))
    if with_usage and turn.reports:
        yield sse({**head, "choices": [], "usage": usage(turn)})
    yield sse("[DONE]")


def embeddings(turn: Turn, given: Any, encoding: str) -> dict[str, Any]:
    """Embedding vectors, short ones: one for each text or list of tokens given."""
    turn.output = 0
    turn.finish()
    one = not isinstance(given, list) or not given or isinstance(given[0], int)
    vector: Any = list(VECTOR)
    if encoding == "base64":
        vector = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
    return {
        "object": "list",
        "model": turn.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index in range(1 if one else len(given))
        ],
        **({"usage": {"prompt_tokens": turn.input, "total_tokens": turn.input}} if turn.reports else {}),
    }


def model(name: str) -> dict[str, Any]:
    """A model as OpenAI lists it."""
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "tollkeeper"}
