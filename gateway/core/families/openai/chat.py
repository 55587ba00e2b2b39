"""OpenAI chat completions, completions and embeddings, as OpenAI and those that speak its API answer.

Tokens are `usage.prompt_tokens` + `usage.completion_tokens`; cached and reasoning tokens are
inside those. A stream reports in one last frame whose `choices` are empty. Others differ: xAI's
completion leaves the reasoning out, which its total says; Groq and Moonshot may report in the event
that finishes the choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

import msgspec

from gateway.core.families.family import told_of
from gateway.core.families.openai.calls import OBJECTS
from gateway.core.families.openai.shapes import (
    USAGE,
    Choice,
    CompletionChunk,
    InputDetails,
    OutputDetails,
    read_event,
    read_whole,
)
from gateway.core.metering.meter import CLOSED, Detail, Dialect, Meter
from gateway.core.metering.reading import UNREADABLE, count_text, decoded, is_there, loose_document
from gateway.core.metering.report import may_hold_more, see_content


# What a report of use of OpenAI's APIs is made of, noted beside what is charged.
def any_count(read: int | None, written: int | None) -> bool:
    """Whether either of these is a number of tokens."""
    return (read is not None and read >= 0) or (written is not None and written >= 0)


def note_parts(detail: Detail, read: InputDetails | None, written: OutputDetails | None) -> tuple[int, int]:
    """Note what tokens are made of, as far as a report says; those cached, and those of reasoning."""
    cached = reasoning = 0
    if read is not None:
        cached, written_in_all = read.cached_tokens or 0, read.cache_write_tokens or 0
        if read.cache_write_tokens_details is not None:
            detail.cache_write_1h = read.cache_write_tokens_details.ttl_12h_tokens or 0
        detail.cache_write = written_in_all - detail.cache_write_1h
        detail.audio_input, detail.image_input = read.audio_tokens or 0, read.image_tokens or 0
    if written is not None:
        reasoning = written.reasoning_tokens or 0
        detail.audio_output, detail.image_output = written.audio_tokens or 0, written.image_tokens or 0
    return cached, reasoning


def note_tools(detail: Detail, uses: dict[str, int] | None, raw: bytes) -> None:
    """Note uses of a provider's tools, by names such as `web_search_requests` and `x_search_calls`."""
    if not uses:
        return
    for name, times in uses.items():
        if not detail.used_tool(name.removesuffix("_requests").removesuffix("_calls"), times):
            detail.keep(raw)


DONE = b"data: [DONE]\n\n"
_ENVELOPE = frozenset({"provider", "system_fingerprint", "service_tier"})


# What most answers say they used, by one pass in C (`_usage.c`), where that is compiled: model, service tier,
# and tokens of the prompt, of the completion, cached and of reasoning. None where an answer says more:
# `_read_whole` below is the definition.
_usage_of: Callable[[bytes], tuple[str, str | None, int, int, int, int] | None] | None
try:
    _usage_of = import_module("gateway.core.metering._usage").usage_of
except ImportError:
    _usage_of = None


def _read_whole(meter: Meter, document: bytes) -> None:
    found = None if _usage_of is None or meter.reported else _usage_of(document)
    if found is not None:
        model, tier, used, output, cached, reasoning = found
        meter.failed = False
        _name(meter, model, tier)
        meter.report(used, output, cached, reasoning, used + output, final=True)
        return
    try:
        read = decoded(read_whole, document)
    except UNREADABLE:
        _report_loose(meter, loose_document(document))
        return
    meter.failed = is_there(read.error)
    _name(meter, read.model, read.service_tier)
    if is_there(read.usage):
        _report(meter, bytes(read.usage))


def _read_event(meter: Meter, data: bytes) -> bool:
    if meter.phase == CLOSED and data.strip() == b"[DONE]":
        return False
    try:
        read = decoded(read_event, data)
    except UNREADABLE:
        count_text(meter, data)
        event = loose_document(data)
        return _report_loose(meter, event) and event.get("choices") == []
    if meter.call.keeps and not meter.told:
        meter.told += told_of(OBJECTS, loose_document(data))
    before = meter.text_bytes
    for choice in read.choices or ():
        _see(meter, choice)
    if read.choices and may_hold_more(data, meter.text_bytes - before):
        see_content(meter, loose_document(data).get("choices"), meter.text_bytes - before)
    elif read.choices is None and not is_there(read.error) and not is_there(read.usage):
        _see_own_shape(meter, loose_document(data))
    if is_there(read.error):
        meter.failed = True
    if not meter.detail.model:
        _name(meter, read.model, read.service_tier)
    elif read.service_tier is not None and read.service_tier != meter.detail.service_tier:
        meter.detail.served_as(read.service_tier)
    if not is_there(read.usage):
        if read.choices and (usage := _usage_inside(read)):
            _name(meter, read.model, read.service_tier)
            _report(meter, usage)
        return False
    _name(meter, read.model, read.service_tier)
    _report(meter, bytes(read.usage))
    return not read.choices


def _see_own_shape(meter: Meter, event: dict[str, object]) -> None:
    """See what a server says in a shape of its own; an error of that shape is none of its content."""
    if event.get("object") != "error":
        see_content(meter, {name: value for name, value in event.items() if name not in _ENVELOPE}, 0)


def _usage_inside(read: CompletionChunk) -> bytes:
    """A report that does not stand at the top of its event; empty where there is none."""
    places = [choice.usage for choice in read.choices or ()]
    if read.x_groq is not None:
        places.append(read.x_groq.usage)
    return next((bytes(usage) for usage in places if is_there(usage)), b"")


def _see(meter: Meter, choice: Choice) -> None:
    before = meter.text_bytes
    if choice.text:
        meter.saw(choice.text)
    delta = choice.delta
    if delta is not None:
        if delta.content:
            meter.saw(delta.content)
        if delta.tool_calls is not None or not delta.content:
            for text in (delta.reasoning_content, delta.reasoning, delta.refusal):
                if text:
                    meter.saw(text)
            functions = [tool_call.function for tool_call in delta.tool_calls or ()]
            for function in (delta.function_call, *functions):
                if function is not None:
                    meter.saw((function.name or "") + (function.arguments or ""))
    if meter.text_bytes > before:
        meter.content_events += 1
    if is_there(choice.finish_reason):
        meter.finished += 1


def _name(meter: Meter, model: object, tier: object) -> None:
    meter.detail.answered_by(model)
    meter.detail.served_as(tier)


def _report(meter: Meter, raw: bytes) -> bool:
    """Take a report; whether it says anything."""
    usage = USAGE.read(meter, raw)
    if usage is None:
        return False
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None and completion is None:
        prompt = usage.total_tokens  # some embedding servers say no more
    if not any_count(prompt, completion):
        return False
    prompt, completion = prompt or 0, completion or 0
    detail = meter.detail
    read, written = usage.prompt_tokens_details, usage.completion_tokens_details
    cached, reasoning = note_parts(detail, read, written)
    cached = cached or usage.prompt_cache_hit_tokens or usage.cached_tokens or usage.num_cached_tokens or 0
    note_tools(detail, usage.server_tool_use, raw)
    note_tools(detail, usage.server_side_tool_usage_details, raw)
    total = usage.total_tokens
    if total is not None and total != prompt + completion:
        if reasoning > 0 and min(prompt, completion) >= 0 and total == prompt + completion + reasoning:
            completion += reasoning
        else:
            detail.keep(raw)
    meter.report(prompt, completion, cached, reasoning, prompt + completion, final=True)
    return True


def _report_loose(meter: Meter, read: dict[str, object]) -> bool:
    """Take what can be read of a document that is not of the documented types; whether it reports a use."""
    usage = read.get("usage")
    _name(meter, read.get("model"), read.get("service_tier"))
    if not isinstance(usage, dict) or not _report(meter, msgspec.json.encode(usage)):
        return False
    meter.marked = True
    return True


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


_TEXTS = re.compile(
    rb'"(?:(?P<text>content|text|reasoning_content|reasoning|arguments)|(?P<padding>obfuscation))"'
    rb'[ \t]*:[ \t]*"'
)
DIALECT = Dialect(_read_whole, _read_event, _closing, texts=_TEXTS)
