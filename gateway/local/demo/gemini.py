"""What the demo upstream answers in the shape of Gemini: contents whole or in pieces, embeddings. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.local.demo.shapes import THOUGHT, Turn

VECTOR = [0.125, -0.5, 0.25]
CALL = {"functionCall": {"name": "look_up", "args": {"place": "here"}}}


def generated(turn: Turn) -> dict[str, Any]:
    """A whole answer."""
    turn.finish()
    parts: list[dict[str, Any]] = [{"text": turn.text}]
    if turn.thinks:
        parts.insert(0, {"text": THOUGHT, "thought": True})
    if turn.calls_tool:
        parts.append(CALL)
    return _answer(turn, parts, last=True)


def generated_pieces(turn: Turn) -> Iterator[dict[str, Any]]:
    """The same in pieces: each repeats what is known of the use, the last has all of it."""
    if turn.thinks:
        yield _answer(turn, [{"text": turn.say(THOUGHT), "thought": True}], last=False)
    for number, piece in enumerate(turn.pieces):
        last = number == len(turn.pieces) - 1 and not turn.end
        parts: list[dict[str, Any]] = [{"text": turn.say(piece)}]
        if last:
            turn.finish()
            parts += [CALL] if turn.calls_tool else []
        yield _answer(turn, parts, last=last)
    if turn.end:
        yield {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


def embedded(turn: Turn, texts: int | None) -> dict[str, Any]:
    """Vectors, short ones: one where `texts` is None, else a list of so many."""
    turn.output = 0
    turn.finish()
    found: dict[str, Any] = (
        {"embedding": {"values": VECTOR}} if texts is None else {"embeddings": [{"values": VECTOR}] * texts}
    )
    if turn.reports:
        found["usageMetadata"] = {"promptTokenCount": turn.input, "totalTokenCount": turn.input}
    return found


def model(name: str) -> dict[str, Any]:
    """A model as Gemini lists it."""
    return {
        "name": f"models/{name}",
        "displayName": name,
        "inputTokenLimit": 128_000,
        "outputTokenLimit": 8192,
        "supportedGenerationMethods": ["generateContent", "countTokens", "embedContent"],
    }


def _answer(turn: Turn, parts: list[dict[str, Any]], *, last: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if last:
        candidate["finishReason"] = "MAX_TOKENS" if turn.stopped_by_length else "STOP"
    found: dict[str, Any] = {"candidates": [candidate]}
    if turn.reports:
        found["usageMetadata"] = _usage(turn, last=last)
    return found | {"modelVersion": turn.model, "responseId": turn.id}


def _usage(turn: Turn, *, last: bool) -> dict[str, int]:
    usage = {"promptTokenCount": turn.input}
    if last:
        usage["candidatesTokenCount"] = turn.output - turn.reasoning
    if turn.cached:
        usage["cachedContentTokenCount"] = turn.cached
    if turn.reasoning and last:
        usage["thoughtsTokenCount"] = turn.reasoning
    usage["totalTokenCount"] = turn.input + (turn.output if last else 0)
    return usage
