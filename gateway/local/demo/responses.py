"""What the demo upstream answers in the shape of OpenAI's responses: an object or its events. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.local.demo.shapes import CREATED, THOUGHT, Turn, sse

STATUSES = {"": "completed", "incomplete": "incomplete", "failed": "failed"}


def response(turn: Turn, status: str | None = None) -> dict[str, Any]:
    """The object; `status` is `in_progress` while it is being made, else how the call ends."""
    if status is None:
        status = STATUSES.get(turn.end, "completed")
        turn.finish()
    over = status != "in_progress"
    failed = status == "failed"
    return {
        "id": f"resp_{turn.id}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": {"code": "server_error", "message": "The model failed."} if failed else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": turn.model,
        "output": [_reasoning(turn), _message(turn, "completed")][not turn.thinks :] if over else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": _usage(turn) if over and turn.reports else None,
    }


def response_stream(turn: Turn) -> Iterator[bytes]:
    """The events of a streamed response."""
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return sse({"type": kind, "sequence_number": number - 1, **fields}, kind)

    yield event("response.created", response=response(turn, "in_progress"))
    yield event("response.in_progress", response=response(turn, "in_progress"))
    at = 0
    if turn.thinks:
        item = _reasoning(turn)
        yield event("response.output_item.added", output_index=0, item={**item, "summary": []})
        where = {"item_id": item["id"], "output_index": 0, "summary_index": 0}
        yield event("response.reasoning_summary_text.delta", **where, delta=turn.say(THOUGHT))
        yield event("response.reasoning_summary_text.done", **where, text=THOUGHT)
        yield event("response.output_item.done", output_index=0, item=item)
        at = 1
    message = _message(turn, "completed")
    where = {"item_id": message["id"], "output_index": at, "content_index": 0}
    yield event("response.output_item.added", output_index=at, item=_message(turn, "in_progress"))
    part = message["content"][0]
    yield event("response.content_part.added", **where, part={**part, "text": ""})
    for piece in turn.pieces:
        yield event("response.output_text.delta", **where, delta=turn.say(piece), logprobs=[])
    if turn.end == "error":
        yield event("error", code="server_error", message="The server had an error.", param=None)
        return
    turn.finish()
    yield event("response.output_text.done", **where, text=turn.text, logprobs=[])
    yield event("response.content_part.done", **where, part=part)
    yield event("response.output_item.done", output_index=at, item=message)
    yield event(f"response.{STATUSES.get(turn.end, 'completed')}", response=response(turn))


def _usage(turn: Turn) -> dict[str, Any]:
    return {
        "input_tokens": turn.input,
        "input_tokens_details": {"cached_tokens": turn.cached},
        "output_tokens": turn.output,
        "output_tokens_details": {"reasoning_tokens": turn.reasoning},
        "total_tokens": turn.input + turn.output,
    }


def _message(turn: Turn, status: str) -> dict[str, Any]:
    text = {"type": "output_text", "text": turn.text, "annotations": [], "logprobs": []}
    content = [text] if status == "completed" else []
    return {
        "type": "message",
        "id": f"msg_{turn.id}",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _reasoning(turn: Turn) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": f"rs_{turn.id}",
        "summary": [{"type": "summary_text", "text": THOUGHT}],
    }
