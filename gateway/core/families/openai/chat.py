"""OpenAI chat completions, completions and embeddings.

Tokens are `usage.prompt_tokens` + `usage.completion_tokens`; cached and reasoning tokens are
inside those. A stream reports in one last frame whose `choices` are empty.
"""

from __future__ import annotations

import msgspec

from gateway.core.families.family import told_of
from gateway.core.families.openai.objects import OBJECTS
from gateway.core.families.openai.shapes import Choice, Delta, Usage, read_event, read_whole
from gateway.core.metering.loose import count_text, integer, loose_document
from gateway.core.metering.meter import CLOSED, Dialect, Meter

DONE = b"data: [DONE]\n\n"


def _read_whole(meter: Meter, document: bytes) -> None:
    try:
        read = read_whole(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        _report_loose(meter, document)
        return
    meter.failed = read.error is not msgspec.UNSET and bytes(read.error) != b"null"
    if read.usage is not None:
        _report(meter, read.usage)


def _read_event(meter: Meter, data: bytes) -> bool:
    if meter.phase == CLOSED and data.strip() == b"[DONE]":
        return False
    try:
        read = read_event(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        count_text(meter, data)
        return _report_loose(meter, data)
    if meter.call.keeps and not meter.told:
        meter.told += told_of(OBJECTS, loose_document(data))
    for choice in read.choices or ():
        _see(meter, choice)
    if read.error is not msgspec.UNSET and bytes(read.error) != b"null":
        meter.failed = True
    if read.usage is None:
        return False
    _report(meter, read.usage)
    return not read.choices


def _see(meter: Meter, choice: Choice) -> None:
    before = meter.text_bytes
    if choice.text:
        meter.saw(choice.text)
    delta = choice.delta
    if delta is not None:
        if delta.content:
            meter.saw(delta.content)
        if delta.tool_calls is not None or not delta.content:
            _see_rest(meter, delta)
    if meter.text_bytes > before:
        meter.content_events += 1
    reason = choice.finish_reason
    if reason is not msgspec.UNSET and bytes(reason) != b"null":
        meter.finished += 1


def _see_rest(meter: Meter, delta: Delta) -> None:
    for text in (delta.reasoning_content, delta.reasoning, delta.refusal):
        if text:
            meter.saw(text)
    functions = [tool_call.function for tool_call in delta.tool_calls or ()]
    for function in (delta.function_call, *functions):
        if function is not None:
            meter.saw((function.name or "") + (function.arguments or ""))


def _report(meter: Meter, usage: Usage) -> None:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None and completion is None:
        prompt = usage.total_tokens  # some embedding servers say no more
        if prompt is None:
            return
    prompt, completion = prompt or 0, completion or 0
    details = usage.prompt_tokens_details
    cached = 0 if details is None else details.cached_tokens or 0
    details = usage.completion_tokens_details
    reasoning = 0 if details is None else details.reasoning_tokens or 0
    meter.report(prompt, completion, cached, reasoning, prompt + completion, final=True)


def _report_loose(meter: Meter, document: bytes) -> bool:
    """Take what can be read of a usage that is not of the documented types."""
    read = loose_document(document)
    usage = read.get("usage")
    if not isinstance(usage, dict):
        return False
    prompt, completion = integer(usage.get("prompt_tokens")), integer(usage.get("completion_tokens"))
    if prompt is None and completion is None:
        return False
    meter.report(prompt or 0, completion or 0, 0, 0, (prompt or 0) + (completion or 0), final=True)
    meter.marked = True
    return read.get("choices") == []


def _closing(meter: Meter) -> bytes:
    """End every choice by length, as if its maximum had been reached."""
    last = loose_document(meter.opening or b"")
    event: dict[str, object] = {
        name: last[name] for name in ("id", "object", "created", "model") if name in last
    }
    choice: dict[str, object] = {"index": 0, "finish_reason": "length", "logprobs": None}
    legacy = meter.call.meter == "openai_completions"
    choice["text" if legacy else "delta"] = "" if legacy else {}
    event["choices"] = [{**choice, "index": index} for index in range(meter.call.choices)]
    end = b"data: " + msgspec.json.encode(event) + b"\n\n"
    if not meter.call.strip_usage:  # the client asked for its usage
        counted = meter.usage()
        event["choices"] = []
        event["usage"] = {
            "prompt_tokens": counted.input,
            "completion_tokens": counted.output,
            "total_tokens": counted.total,
        }
        end += b"data: " + msgspec.json.encode(event) + b"\n\n"
    return end + DONE


DIALECT = Dialect(_read_whole, _read_event, _closing)
