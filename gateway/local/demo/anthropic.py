"""What the demo upstream answers in the shape of Anthropic's messages. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.local.demo.shapes import THOUGHT, Turn, sse

TOOL_INPUT = '{"place":"here"}'


def message(turn: Turn) -> dict[str, Any]:
    """A message: thoughts, text, a tool's use."""
    turn.finish()
    content: list[dict[str, Any]] = []
    if turn.thinks:
        content.append({"type": "thinking", "thinking": THOUGHT, "signature": "c2lnbmVk"})
    content.append({"type": "text", "text": turn.text})
    if turn.calls_tool:
        content.append(
            {"type": "tool_use", "id": f"toolu_{turn.id}", "name": "look_up", "input": {"place": "here"}}
        )
    return {**_envelope(turn), "content": content, "stop_reason": _stop_reason(turn), **_reported(turn)}


def message_stream(turn: Turn) -> Iterator[bytes]:
    """A message as events: input tokens come first, output tokens last."""
    start = {**_envelope(turn), "content": [], "stop_reason": None}
    if turn.reports:
        turn.announced = 1
        start["usage"] = _usage(turn) | {"output_tokens": 1}
    yield _event("message_start", message=start)
    index = 0
    if turn.thinks:
        block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
        thought = [{"type": "thinking_delta", "thinking": turn.say(THOUGHT)}]
        yield from _block(index, block, [*thought, {"type": "signature_delta", "signature": "c2lnbmVk"}])
        index += 1
    yield _event("ping")
    yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
    for number, piece in enumerate(turn.pieces):
        if number == 2:
            yield _event("ping")
        delta = {"type": "text_delta", "text": turn.say(piece)}
        yield _event("content_block_delta", index=index, delta=delta)
    if turn.end:
        yield _event("error", error={"type": "overloaded_error", "message": "Overloaded"})
        return
    turn.finish()
    yield _event("content_block_stop", index=index)
    if turn.calls_tool:
        block = {"type": "tool_use", "id": f"toolu_{turn.id}", "name": "look_up", "input": {}}
        halves = (TOOL_INPUT[:7], TOOL_INPUT[7:])
        yield from _block(
            index + 1, block, [{"type": "input_json_delta", "partial_json": half} for half in halves]
        )
    end = {"stop_reason": _stop_reason(turn), "stop_sequence": None}
    used = {"usage": {"output_tokens": turn.output}} if turn.reports else {}
    yield _event("message_delta", delta=end, **used)
    yield _event("message_stop")


def model(name: str) -> dict[str, Any]:
    """A model as Anthropic lists it."""
    return {"type": "model", "id": name, "display_name": name, "created_at": "2023-11-14T00:00:00Z"}


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def _block(index: int, block: dict[str, Any], deltas: list[dict[str, Any]]) -> Iterator[bytes]:
    yield _event("content_block_start", index=index, content_block=block)
    for delta in deltas:
        yield _event("content_block_delta", index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _envelope(turn: Turn) -> dict[str, Any]:
    return {
        "id": f"msg_{turn.id}",
        "type": "message",
        "role": "assistant",
        "model": turn.model,
        "stop_sequence": None,
    }


def _stop_reason(turn: Turn) -> str:
    if turn.calls_tool:
        return "tool_use"
    return "max_tokens" if turn.stopped_by_length else "end_turn"


def _reported(turn: Turn) -> dict[str, Any]:
    return {"usage": _usage(turn)} if turn.reports else {}


def _usage(turn: Turn) -> dict[str, Any]:
    return {
        "input_tokens": turn.input,
        "cache_creation_input_tokens": turn.created,
        "cache_read_input_tokens": turn.cached,
        "output_tokens": turn.output,
        "service_tier": "standard",
    }
