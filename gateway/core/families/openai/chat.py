"""Answers of OpenAI's chat completions, completions and embeddings, by OpenAI and compatible servers.

Tokens are `usage.prompt_tokens` + `usage.completion_tokens`. A stream reports them in one last frame with
empty `choices`; other servers differ, see `reports.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from math import ceil
from typing import Final

import msgspec

from gateway.core.billing.price_book import SEARCH
from gateway.core.families.controlled import SEARCHING_MODELS
from gateway.core.families.family import object_in, objects_in, told_of
from gateway.core.families.openai.calls import OBJECTS
from gateway.core.families.openai.reports import ChoiceReports, read_usage, report_all
from gateway.core.families.openai.shapes import Choice, CompletionChunk, read_event, read_whole
from gateway.core.metering.content import content_bytes
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import UNREADABLE, count_text, decoded, is_there, loose_document
from gateway.core.metering.refusals import FEW_TOKENS, refuse
from gateway.core.metering.report import may_hold_more, see_content

DONE = b"data: [DONE]\n\n"
_NO_REASON = b'""'  # as some servers write it in each event
_REFUSED, _REFUSED_WHOLE = b'"refusal"', re.compile(rb'"finish_reason"[ \t\r\n]*:[ \t\r\n]*"refusal"')
_ENVELOPE = frozenset({"provider", "system_fingerprint", "service_tier"})


# The usage in most answers, read by one pass in C (`_usage.c`), where that is compiled: model, service tier,
# and tokens of the prompt, of the completion, cached and of reasoning. None if an answer has more than that:
# `_read_whole` below is the definition.
_usage_of: Callable[[bytes], tuple[str, str | None, int, int, int, int] | None] | None
try:
    _usage_of = import_module("gateway.core.metering._usage").usage_of
except ImportError:
    _usage_of = None


def _read_whole(meter: Meter, document: bytes) -> None:
    """Report usage, model and refusal of a whole answer to `meter`."""
    alone = meter.call.spec.choices == 1 and not meter.reported
    usage = _usage_of(document) if alone and _usage_of is not None else None
    if usage is not None:
        model, tier, used, output, cached, reasoning = usage
        meter.failed = False
        _name(meter, model, tier)
        meter.report(used, output, cached, reasoning, used + output, final=True)
        if output <= FEW_TOKENS:
            _see_refusal(meter, document)
        return
    try:
        read = decoded(read_whole, document)
    except UNREADABLE:
        _report_loose(meter, loose_document(document))
        return
    meter.failed = is_there(read.error)
    _name(meter, read.model, read.service_tier)
    if is_there(read.usage):
        _report_whole(meter, document, bytes(read.usage))
    elif b'"usage"' in document:
        _report_inside(meter, objects_in(loose_document(document), "choices"))
    if meter.output <= FEW_TOKENS:
        _see_refusal(meter, document)


def _see_refusal(meter: Meter, document: bytes) -> None:
    """Note a refusal of Claude before any content, if the `document` of one choice in OpenAI's shape has it."""
    if _REFUSED_WHOLE.search(document) is None:
        return
    read = loose_document(document)
    choices = objects_in(read, "choices")
    if len(choices) == 1 and not content_bytes(object_in(choices[0], "message")):
        refuse(meter, choices[0].get("stop_details") or read.get("stop_details"))


def _report_whole(meter: Meter, document: bytes, raw: bytes) -> None:
    """Report the usage of a whole answer."""
    numbers = read_usage(meter, raw)
    if numbers is not None and meter.call.spec.choices > 1:
        numbers = report_all(meter, loose_document(document), numbers)
    if numbers is not None:
        prompt, completion, cached, reasoning = numbers
        meter.report(prompt, completion, cached, reasoning, prompt + completion, final=True)


def _report_inside(meter: Meter, choices: list[dict[str, object]]) -> None:
    """Report the usage in each choice of a whole answer; text of choices without a report is counted."""
    reports, untold = ChoiceReports(max(1, meter.call.spec.choices // meter.call.spec.prompts)), []
    for place in range(len(choices)):
        reports.see(meter, place, True)
    for place, choice in enumerate(choices):
        numbers = read_usage(meter, msgspec.json.encode(object_in(choice, "usage")))
        if numbers is not None:
            reports.report(meter, place, numbers, 0)
        else:
            untold.append(choice)
    if meter.reported and untold:
        counted = ceil(sum(map(content_bytes, untold)) / meter.call.learned.output_bytes_per_token)
        output = max(meter.output, min(meter.output + counted, meter.output_most))
        read = ceil(meter.input / meter.call.spec.first_part)
        meter.report(read, output, meter.cached, meter.reasoning, read + output, final=True)
        meter.marked = meter.detail.contradicted = True


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a stream reports; return whether it has usage and no choices."""
    if meter.phase == CLOSED and data.strip() == b"[DONE]":
        return False
    try:
        read = decoded(read_event, data)
    except UNREADABLE:
        return _read_odd_event(meter, data)
    if meter.call.objects.keeps and not meter.told:
        meter.told += told_of(OBJECTS, loose_document(data))
    before, content = meter.text_bytes, meter.content_events
    for place, choice in enumerate(read.choices or ()):
        _see(meter, choice, place)
    if read.choices and may_hold_more(meter, data, meter.text_bytes - before):
        see_content(meter, loose_document(data).get("choices"), meter.text_bytes - before, len(data))
    elif read.choices is None and not is_there(read.error) and not is_there(read.usage):
        _see_own_shape(meter, loose_document(data))
    if is_there(read.error):
        meter.failed = True
    if not meter.detail.model:
        _name(meter, read.model, read.service_tier)
    elif read.service_tier is not None and read.service_tier != meter.detail.service_tier:
        meter.detail.served_as(read.service_tier)
    usage = bytes(read.usage) if is_there(read.usage) else _usage_inside(read) if read.choices else b""
    if usage:
        _name(meter, read.model, read.service_tier)
        one = read.choices[0] if read.choices and len(read.choices) == 1 else None
        _report(meter, usage, -1 if one is None else _index(meter, one), meter.content_events - content)
    return is_there(read.usage) and not read.choices


def _read_odd_event(meter: Meter, data: bytes) -> bool:
    """Read an event with other types than documented; return whether it has usage and no choices."""
    count_text(meter, data)
    event = loose_document(data)
    for place, item in enumerate(objects_in(event, "choices")):
        meter.note_choice(item.get("index"), place, finished=bool(item.get("finish_reason")))
    return _report_loose(meter, event) and event.get("choices") == []


def _see_own_shape(meter: Meter, event: dict[str, object]) -> None:
    """Count the text of an event in a form that only this server has, unless the event is an error."""
    if event.get("object") != "error":
        see_content(meter, {name: value for name, value in event.items() if name not in _ENVELOPE}, 0)


def _usage_inside(read: CompletionChunk) -> bytes:
    """Return the raw usage report in a choice, or in Groq's field `x_groq`; empty if there is none."""
    places = [choice.usage for choice in read.choices or ()]
    if read.x_groq is not None:
        places.append(read.x_groq.usage)
    return next((bytes(usage) for usage in places if is_there(usage)), b"")


def _see(meter: Meter, choice: Choice, place: int) -> None:
    """Count the text, calls of functions and end of one choice in an event."""
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
    reason = choice.finish_reason
    ends, finished = is_there(reason), False
    if is_there(reason):
        finished = _finish(meter, choice, bytes(reason))
    meter.note_choice(choice.index, place, finished=finished)
    if meter.call.spec.choices > 1:
        _reports_of(meter).see(meter, _index(meter, choice), ends)


def _finish(meter: Meter, choice: Choice, reason: bytes) -> bool:
    """Count a choice that ended; return whether `reason` is one."""
    meter.finished += 1
    if reason == _REFUSED and meter.call.spec.choices == 1:
        refuse(meter, choice.stop_details)
    return reason != _NO_REASON


def _index(meter: Meter, choice: Choice) -> int:
    return choice.index % meter.call.spec.choices if isinstance(choice.index, int) else 0


def _reports_of(meter: Meter) -> ChoiceReports:
    """Return the usage reports by choice of this stream, created at first use."""
    if meter.notes is None:
        meter.notes = ChoiceReports(max(1, meter.call.spec.choices // meter.call.spec.prompts))
    reports = meter.notes
    assert isinstance(reports, ChoiceReports)
    return reports


def _name(meter: Meter, model: object, tier: object) -> None:
    meter.detail.answered_by(model)
    meter.detail.served_as(tier)
    targets = meter.call.aim.targets
    if _searches(meter.call.spec.model) or (targets and _searches_under_another_name(meter)):
        meter.detail.used_tool(SEARCH, 1)


# Of models that search for each answer, and report no search.
_SEARCHING: Final = tuple(word for word, reports in SEARCHING_MODELS.items() if not reports)


def _searches(model: str) -> bool:
    return any(word in model for word in _SEARCHING)


def _searches_under_another_name(meter: Meter) -> bool:
    """Return whether a model searches by itself: the one that answered, or all to which the call may go."""
    targets = meter.call.aim.targets
    return _searches(meter.detail.model) or all(_searches(target.model) for target in targets)


def _report(meter: Meter, raw: bytes, choice: int = -1, content: int = 0) -> bool:
    """Report the usage in an event of one choice, or of all choices (`choice` -1).

    `content` is the size of the event's text. Return whether the event has a report.
    """
    numbers = read_usage(meter, raw)
    if numbers is None:
        return False
    if meter.call.spec.choices > 1:
        _reports_of(meter).report(meter, choice, numbers, content)
    else:
        prompt, completion, cached, reasoning = numbers
        meter.report(prompt, completion, cached, reasoning, prompt + completion, final=True)
    return True


def _report_loose(meter: Meter, read: dict[str, object]) -> bool:
    """Report the usage in a document with other types than documented; return whether there was any."""
    usage = read.get("usage")
    _name(meter, read.get("model"), read.get("service_tier"))
    if not isinstance(usage, dict) or not _report(meter, msgspec.json.encode(usage)):
        return False
    meter.marked = True
    return True


def _closing(meter: Meter) -> bytes:
    """Return events that end every choice with `finish_reason: length`, and a usage frame if requested."""
    last = loose_document(meter.opening or b"")
    event: dict[str, object] = {
        name: last[name] for name in ("id", "object", "created", "model") if name in last
    }
    choice: dict[str, object] = {"index": 0, "finish_reason": "length", "logprobs": None}
    legacy = meter.call.meter == "openai_completions"
    choice["text" if legacy else "delta"] = "" if legacy else {}
    event["choices"] = [{**choice, "index": index} for index in range(meter.call.spec.choices)]
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
DIALECT = Dialect(_read_whole, _read_event, _closing, texts=_TEXTS, ending=ENDINGS["chat"])
