"""The answers of the demo upstream: the shapes of OpenAI, Anthropic and Gemini. Pure.

Token counts are deterministic: words and punctuation marks of what is sent and answered. A
request may dictate them with `x-demo-usage: input,output[,cached[,reasoning]]`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WORD = re.compile(r"\w+|[^\w\s]")
OUTPUT_TOKENS_MAX = 16
CREATED = 1_700_000_000
MODELS = ("demo-small", "demo-large")


@dataclass(frozen=True, slots=True)
class Turn:
    """One call as every shape needs it: what is answered, and the tokens it cost."""

    id: str
    model: str
    pieces: tuple[str, ...]
    stopped_by_length: bool
    input: int
    output: int
    cached: int = 0
    reasoning: int = 0

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)


def tokens_in(value: Any) -> int:
    """Words and punctuation marks of every text inside a JSON value."""
    if isinstance(value, str):
        return len(WORD.findall(value))
    if isinstance(value, list):
        return sum(map(tokens_in, value))
    if isinstance(value, dict):
        return sum(tokens_in(item) for name, item in value.items() if name not in {"role", "type"})
    return 0


def turn(body: dict[str, Any], model: str, dictated: str) -> Turn:
    """Read a call of any family; `dictated` is `x-demo-usage` or empty."""
    prompt = next((body[name] for name in ("messages", "input", "prompt", "contents") if name in body), "")
    asked = _output_max(body)
    words = ["You", " said", ":", *re.findall(r"\s*\S+", " " + (_last_text(prompt) or "nothing"))]
    ceiling = min(asked or OUTPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX)
    pieces = tuple(words[:ceiling])
    counts = [int(each) for each in dictated.split(",")] if dictated else [tokens_in(prompt), len(pieces)]
    counts += [0] * (4 - len(counts))
    identity = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]
    return Turn(identity, model, pieces, len(words) > ceiling, counts[0], counts[1], counts[2], counts[3])


def _output_max(body: dict[str, Any]) -> int | None:
    generation = body.get("generationConfig") or {}
    for source, name in (
        (body, "max_completion_tokens"),
        (body, "max_output_tokens"),
        (body, "max_tokens"),
        (generation, "maxOutputTokens"),
    ):
        if isinstance(source, dict) and isinstance(source.get(name), int) and source[name] > 0:
            return int(source[name])
    return None


def _last_text(value: Any) -> str:
    """The last text said, however it is wrapped."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return _last_text(value[-1])
    if isinstance(value, dict):
        return _last_text(next((value[name] for name in ("content", "text", "parts") if name in value), ""))
    return ""


def sse(data: Any, event: str = "") -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


def _openai_usage(turn: Turn) -> dict[str, Any]:
    return {
        "prompt_tokens": turn.input,
        "completion_tokens": turn.output,
        "total_tokens": turn.input + turn.output,
        "prompt_tokens_details": {"cached_tokens": turn.cached},
        "completion_tokens_details": {"reasoning_tokens": turn.reasoning},
    }


def chat(turn: Turn, choices: int = 1) -> dict[str, Any]:
    """A chat completion."""
    finish = "length" if turn.stopped_by_length else "stop"
    message = {"role": "assistant", "content": turn.text, "refusal": None}
    return {
        "id": f"chatcmpl-{turn.id}",
        "object": "chat.completion",
        "created": CREATED,
        "model": turn.model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
            for index in range(choices)
        ],
        "usage": _openai_usage(turn),
    }


def chat_stream(turn: Turn, *, usage: bool) -> Iterator[bytes]:
    """A chat completion in chunks; the usage frame only when asked for."""
    head = {
        "id": f"chatcmpl-{turn.id}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": turn.model,
    }
    extra: dict[str, Any] = {"usage": None} if usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **extra})

    yield chunk({"role": "assistant", "content": ""})
    for piece in turn.pieces:
        yield chunk({"content": piece})
    yield chunk({}, "length" if turn.stopped_by_length else "stop")
    if usage:
        yield sse({**head, "choices": [], "usage": _openai_usage(turn)})
    yield sse("[DONE]")


def completion(turn: Turn) -> dict[str, Any]:
    """A text completion."""
    finish = "length" if turn.stopped_by_length else "stop"
    return {
        "id": f"cmpl-{turn.id}",
        "object": "text_completion",
        "created": CREATED,
        "model": turn.model,
        "choices": [{"index": 0, "text": turn.text, "logprobs": None, "finish_reason": finish}],
        "usage": _openai_usage(turn),
    }


def completion_stream(turn: Turn, *, usage: bool) -> Iterator[bytes]:
    """A text completion in chunks."""
    head = {"id": f"cmpl-{turn.id}", "object": "text_completion", "created": CREATED, "model": turn.model}
    for piece in turn.pieces:
        yield sse({**head, "choices": [{"index": 0, "text": piece, "finish_reason": None}]})
    finish = "length" if turn.stopped_by_length else "stop"
    yield sse({**head, "choices": [{"index": 0, "text": "", "finish_reason": finish}]})
    if usage:
        yield sse({**head, "choices": [], "usage": _openai_usage(turn)})
    yield sse("[DONE]")


def response(turn: Turn, status: str = "completed") -> dict[str, Any]:
    """An object of OpenAI's Responses API."""
    content = [{"type": "output_text", "text": turn.text, "annotations": []}]
    done = status == "completed"
    return {
        "id": f"resp_{turn.id}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "model": turn.model,
        "output": [
            {
                "type": "message",
                "id": f"msg_{turn.id}",
                "status": "completed",
                "role": "assistant",
                "content": content,
            }
        ]
        if done
        else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": turn.input,
            "input_tokens_details": {"cached_tokens": turn.cached},
            "output_tokens": turn.output,
            "output_tokens_details": {"reasoning_tokens": turn.reasoning},
            "total_tokens": turn.input + turn.output,
        }
        if done
        else None,
    }


def response_stream(turn: Turn) -> Iterator[bytes]:
    """The events of a streamed response."""
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return sse({"type": kind, "sequence_number": number - 1, **fields}, kind)

    item = {
        "type": "message",
        "id": f"msg_{turn.id}",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield event("response.created", response=response(turn, "in_progress"))
    yield event("response.output_item.added", output_index=0, item=item)
    for piece in turn.pieces:
        yield event("response.output_text.delta", **where, delta=piece, logprobs=[])
    yield event("response.output_text.done", **where, text=turn.text, logprobs=[])
    yield event("response.output_item.done", output_index=0, item=response(turn)["output"][0])
    yield event("response.completed", response=response(turn))


def embeddings(turn: Turn, inputs: int) -> dict[str, Any]:
    """Embedding vectors, short ones."""
    return {
        "object": "list",
        "model": turn.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": [0.125, -0.5, 0.25]}
            for index in range(inputs)
        ],
        "usage": {"prompt_tokens": turn.input, "total_tokens": turn.input},
    }


def _anthropic_usage(turn: Turn) -> dict[str, int]:
    return {
        "input_tokens": turn.input,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": turn.cached,
        "output_tokens": turn.output,
    }


def message(turn: Turn) -> dict[str, Any]:
    """An Anthropic message."""
    return {
        "id": f"msg_{turn.id}",
        "type": "message",
        "role": "assistant",
        "model": turn.model,
        "content": [{"type": "text", "text": turn.text}],
        "stop_reason": "max_tokens" if turn.stopped_by_length else "end_turn",
        "stop_sequence": None,
        "usage": _anthropic_usage(turn),
    }


def message_stream(turn: Turn) -> Iterator[bytes]:
    """An Anthropic message as events; output tokens come last."""
    whole = message(turn)
    usage = _anthropic_usage(turn) | {"output_tokens": 1}
    start = {**whole, "content": [], "stop_reason": None, "usage": usage}
    yield sse({"type": "message_start", "message": start}, "message_start")
    block = {"type": "text", "text": ""}
    yield sse({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start")
    for piece in turn.pieces:
        delta = {"type": "text_delta", "text": piece}
        yield sse({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")
    yield sse({"type": "content_block_stop", "index": 0}, "content_block_stop")
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    used = {"output_tokens": turn.output}
    yield sse({"type": "message_delta", "delta": end, "usage": used}, "message_delta")
    yield sse({"type": "message_stop"}, "message_stop")


def generated(turn: Turn, text: str, *, last: bool) -> dict[str, Any]:
    """A Gemini answer, or one piece of it."""
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if last:
        candidate["finishReason"] = "MAX_TOKENS" if turn.stopped_by_length else "STOP"
    usage: dict[str, int] = {"promptTokenCount": turn.input}
    if last:
        usage["candidatesTokenCount"] = turn.output - turn.reasoning
    if turn.cached:
        usage["cachedContentTokenCount"] = turn.cached
    if turn.reasoning and last:
        usage["thoughtsTokenCount"] = turn.reasoning
    usage["totalTokenCount"] = turn.input + (turn.output if last else 0)
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": turn.model,
        "responseId": turn.id,
    }


def generated_pieces(turn: Turn) -> Iterator[dict[str, Any]]:
    """A Gemini answer in pieces, the last one with the whole usage."""
    for number, piece in enumerate(turn.pieces):
        yield generated(turn, piece, last=number == len(turn.pieces) - 1)


def gemini_model(name: str) -> dict[str, Any]:
    """A model as Gemini lists it."""
    return {
        "name": f"models/{name}",
        "displayName": name,
        "inputTokenLimit": 128_000,
        "outputTokenLimit": 8192,
        "supportedGenerationMethods": ["generateContent", "countTokens", "embedContent"],
    }


def openai_model(name: str) -> dict[str, Any]:
    """A model as OpenAI lists it."""
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "tollkeeper"}


def anthropic_model(name: str) -> dict[str, Any]:
    """A model as Anthropic lists it."""
    return {"type": "model", "id": name, "display_name": name, "created_at": "2023-11-14T00:00:00Z"}
