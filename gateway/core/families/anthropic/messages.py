"""Answers of Anthropic's Messages API, with usage in `message_start` and in `message_delta`.

Tokens are input + cache creation + cache read + output, and those of compactions and advisors, which these
numbers leave out. Each number is cumulative. The last `message_delta` is the last word, `ping` has no
meaning, and an `error` event ends the stream.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.core.billing.price_book import Counts
from gateway.core.billing.service_tiers import tier_at
from gateway.core.billing.unbilled import Declined
from gateway.core.families.anthropic.calls import US, ids_in_event, may_tell
from gateway.core.families.anthropic.fallbacks import FAST
from gateway.core.families.family import KEPT_LINKED, ids_of, object_in
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.reading import (
    NO_COUNT,
    UNREADABLE,
    Reports,
    count_text,
    decoded,
    is_there,
    loose_document,
    summed,
)
from gateway.core.metering.refusals import (
    FALLBACK,
    FEW_TOKENS,
    REFUSAL,
    outcomes,
    refuse,
    see_block,
    see_blocks,
)
from gateway.core.metering.report import UsageShape, may_hold_more, see_content, see_whole


class _CacheCreation(UsageShape):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _OutputDetails(UsageShape):
    thinking_tokens: int | None = None


class _Iteration(UsageShape):
    type: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens: int | None = None


class _MessageUsage(UsageShape):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None
    server_tool_use: dict[str, int] | None = None
    service_tier: str | None = None
    iterations: list[_Iteration] | None = None
    speed: str | None = None
    inference_geo: str | None = None
    # Names used by servers that translate OpenAI's API.
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


ENDING = ENDINGS["messages"]
_REPORTS = Reports(_MessageUsage)
# Types of iterations whose tokens are in the report's totals; the type of a compaction by the same model.
_TOOK_OVER = "fallback_message"
_INSIDE, _COMPACTION = frozenset({"message", _TOOK_OVER}), "compaction"
_KNOWN = frozenset({_COMPACTION, "advisor_message"})
_NAMES_MODEL = b'"model"'  # in a usage report: only an iteration has it


class _Message(msgspec.Struct):
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    type: str | None = None
    model: Any = None
    stop_reason: Any = None


class _Begun(_Message):
    content: Any = None


class _Block(msgspec.Struct):
    type: Any = None


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _MessageEvent(msgspec.Struct):
    type: str | None = None
    index: int | None = None
    delta: _Delta | None = None
    message: _Begun | None = None
    content_block: _Block | None = None
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


# The field with the content by type of event, and the types without content. Other events may be all content.
_HOLDERS = {"content_block_start": "content_block", "content_block_delta": "delta"}
_REFUSED, _TEXT = b'"refusal"', "text"
_NO_CONTENT = frozenset(
    {"message_start", "message_delta", "message_stop", "content_block_stop", "ping", "error", None}
)
# An event without content is no longer than this.
_BARE_BYTES = 80
_whole = msgspec.json.Decoder(_Message).decode
_event = msgspec.json.Decoder(_MessageEvent).decode


def _read_whole(meter: Meter, document: bytes) -> None:
    """Report usage, model and refusal of a whole answer to `meter`."""
    try:
        read = decoded(_whole, document)
    except UNREADABLE:
        _report_loose(meter, loose_document(document), final=True)
        return
    meter.failed = read.type == "error"
    meter.detail.answered_by(read.model)
    usage = bytes(read.usage) if is_there(read.usage) else b""
    if read.stop_reason == REFUSAL or _NAMES_MODEL in usage:
        whole = loose_document(document)
        see_blocks(meter, whole.get("content"))
        if read.stop_reason == REFUSAL:
            refuse(meter, whole.get("stop_details"))
    if usage:
        _report(meter, usage, final=True)


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a stream reports: text, usage, the end, and ids of stored objects."""
    try:
        read = decoded(_event, data)
    except UNREADABLE:
        count_text(meter, data)
        event = loose_document(data)
        _report_loose(meter, event, final=True)
        if event.get("type") in ENDING.events:
            meter.close()
        return False
    _see(meter, read, data)
    if read.type == "content_block_start" and read.index is not None:
        meter.position = read.index
    elif read.type == "content_block_stop":
        meter.position = -1
    if read.message is not None:
        meter.detail.answered_by(read.message.model)
        if is_there(read.message.usage):
            _report(meter, bytes(read.message.usage), final=False)
    if is_there(read.usage):
        _report(meter, bytes(read.usage), final=True)
    _see_end(meter, read, data)
    if read.message is not None and meter.call.objects.keeps == KEPT_LINKED:
        meter.told += ids_of(object_in(loose_document(data), "message").get("id"))
    if meter.call.objects.keeps and may_tell(data):
        meter.told += ids_in_event(loose_document(data))
    return False


def _see_end(meter: Meter, read: _MessageEvent, data: bytes) -> None:
    """Process an event that begins or ends a message or a block of it.

    Note content that no other event has, a failure, or the end of the stream.
    """
    says_more = read.message.content if read.message is not None else len(data) > _BARE_BYTES
    if says_more and read.type in _NO_CONTENT and not (meter.final and meter.output):
        see_whole(meter, loose_document(data))
    if read.type == "error":
        meter.failed = True
    elif read.type in ENDING.events:
        meter.close()


def _see(meter: Meter, read: _MessageEvent, data: bytes) -> None:
    """Count the text and content of an event for `meter`."""
    delta, before = read.delta, meter.text_bytes
    if delta is not None:
        text = delta.text or delta.partial_json or delta.thinking
        if text:
            meter.saw(text)
            meter.content_events += 1
        if is_there(delta.stop_reason):
            meter.finished += 1
            if bytes(delta.stop_reason) == _REFUSED:
                refuse(meter, object_in(loose_document(data), "delta").get("stop_details"))
    elif read.content_block is not None and read.content_block.type != _TEXT:
        see_block(meter, object_in(loose_document(data), "content_block"))
        if read.content_block.type == FALLBACK:
            return
    seen = meter.text_bytes - before
    if read.type not in _NO_CONTENT and may_hold_more(meter, data, seen):
        event, holder = loose_document(data), _HOLDERS.get(read.type or "")
        see_content(meter, event if holder is None else event.get(holder), seen, len(data))


def _report(meter: Meter, raw: bytes, final: bool) -> None:
    """Merge a usage report into `meter`. A missing number keeps its value; `final` marks the last report."""
    usage = _read(meter, raw)
    if usage is None:
        return
    detail = meter.detail
    lacking = _add_iterations(meter, usage, raw)
    detail.note_cost(raw)
    detail.served_as(_tier(usage, meter.call.tiers_of(detail.model)))
    for name, times in (usage.server_tool_use or {}).items():
        if not detail.used_tool(name.removesuffix("_requests"), times):
            detail.keep(raw)
    used, cached = _take_input(meter, usage)
    output = meter.output if usage.output_tokens is None else usage.output_tokens
    thought = usage.output_tokens_details
    reasoning = meter.reasoning if thought is None else thought.thinking_tokens or 0
    meter.report(used, output, cached, reasoning, used + output, final=final)
    # The last report has the output; the input was in it or in the first one.
    no_input = lacking or (not used and usage.input_tokens is None)
    meter.partial = not final or usage.output_tokens is None or no_input


def _take_input(meter: Meter, usage: _MessageUsage) -> tuple[int, int]:
    """Return the input tokens, and those of them read from a cache; note those written to a cache.

    The input never falls. An invalid report has `NO_COUNT` tokens.
    """
    detail, read = meter.detail, usage.cache_read_input_tokens
    cached = meter.cached if read is None else read
    if usage.input_tokens is None:
        return meter.input, cached
    created, kept = usage.cache_creation_input_tokens, usage.cache_creation
    short, hour = detail.cache_write, detail.cache_write_1h
    if kept is not None:
        hour = kept.ephemeral_1h_input_tokens or 0
        if created is None:
            created = hour + (kept.ephemeral_5m_input_tokens or 0)
    if created is not None:
        short = created - hour
    used = usage.input_tokens + short + hour + cached
    if min(usage.input_tokens, created or 0, hour, cached) < 0:
        used = NO_COUNT  # an invalid number must not lower the others
    elif used < meter.input:
        return meter.input, meter.cached
    detail.cache_write, detail.cache_write_1h = short, hour
    return used, cached


def _read(meter: Meter, raw: bytes) -> _MessageUsage | None:
    """Return the decoded usage report in `raw`, or None if it has no number of tokens."""
    usage = _REPORTS.read(meter, raw)
    if usage is None:
        return None
    if usage.input_tokens is None:
        usage.input_tokens = usage.prompt_tokens
    if usage.output_tokens is None:
        usage.output_tokens = usage.completion_tokens
    return None if usage.input_tokens is None and usage.output_tokens is None else usage


def _tier(usage: _MessageUsage, asked: tuple[str, ...]) -> str | None:
    """Return the service tier by which to price a call, with the region if that changes the price.

    A speed of `fast` replaces the tier. `asked` are tiers in the request, which count if the report does
    not state speed or region.
    """
    speed = usage.speed or (FAST if FAST in asked else None)
    tier = FAST if speed == FAST else usage.service_tier
    place = usage.inference_geo or (US if US in asked else None)
    if place != US:
        return tier
    return tier_at("" if tier is None or tier == "standard" else tier, US)


def _add_iterations(meter: Meter, usage: _MessageUsage, raw: bytes) -> bool:
    """Add the tokens of inner steps (`usage.iterations`) that the report's totals do not include.

    Return True if another model's tokens came in a report without `input_tokens`.
    """
    detail, lacking = meter.detail, False
    detail.beside = []
    steps = usage.iterations or []
    attempts = [step for step in steps if step.type in _INSIDE]
    several = len({step.model for step in attempts}) > 1 or (attempts and attempts[-1].type == _TOOK_OVER)
    if several or (detail.declined and 0 < len(attempts) < len(steps)):
        _take_attempts(meter, usage, attempts)
        return False
    for step in steps:
        if step.type in _INSIDE:
            continue
        if step.type != _COMPACTION:
            detail.answered_within(step.model, _counts(step))
            lacking = lacking or usage.input_tokens is None
        if usage.input_tokens is not None:
            _add(usage, step, detail.cache_write_1h)
        if step.type not in _KNOWN or usage.input_tokens is None:
            detail.keep(raw)
    return lacking


def _take_attempts(meter: Meter, usage: _MessageUsage, attempts: list[_Iteration]) -> None:
    """Report the tokens of each of the `attempts` in place of the totals, which are those of the last one.

    An attempt that gave way before it wrote may not be billed; one that reports more than a few tokens wrote.
    A step that names no model is one of the attempt that follows it, else of the last one.
    """
    detail, steps = meter.detail, usage.iterations or []
    detail.handed_to(attempts[-1].model)
    model = detail.model
    for step in reversed(steps):
        if step.type in _INSIDE:
            model = step.model or model
        step.model = step.model or model
    ends = outcomes(meter, [step.model or "" for step in attempts])
    meter.forget_reports()
    detail.declined = []
    usage.input_tokens = usage.output_tokens = 0
    usage.cache_read_input_tokens = usage.cache_creation_input_tokens = 0
    usage.cache_creation = None
    for step in steps:
        _add(usage, step, 0)
        detail.answered_within(step.model, _counts(step))
        end = ends.pop(0) if step.type in _INSIDE else None
        if end is not None and (step.output_tokens or 0) <= FEW_TOKENS:
            detail.declined.append(Declined(end, detail.beside[-1]))


def _counts(each: _Iteration) -> Counts:
    """Return the tokens of an inner step of the model by `KINDS`."""
    kept = each.cache_creation
    hour = 0 if kept is None else kept.ephemeral_1h_input_tokens or 0
    written = (each.cache_creation_input_tokens or 0) - hour
    read = each.cache_read_input_tokens or 0
    counts = each.input_tokens or 0, read, written, hour, each.output_tokens or 0
    return (*[max(0, count) for count in counts], 0, 0, 0, 0, 0)


def _add(usage: _MessageUsage, more: _Iteration, for_an_hour: int) -> None:
    """Add the tokens of an inner step of the model (`more`) to the usage report.

    `for_an_hour` are tokens of one-hour cache writes in an earlier report of the stream, which the last
    one omits.
    """
    usage.input_tokens = summed(usage.input_tokens, more.input_tokens)
    usage.output_tokens = summed(usage.output_tokens, more.output_tokens)
    usage.cache_read_input_tokens = summed(usage.cache_read_input_tokens, more.cache_read_input_tokens)
    usage.cache_creation_input_tokens = summed(
        usage.cache_creation_input_tokens, more.cache_creation_input_tokens
    )
    if more.cache_creation is not None:
        kept = usage.cache_creation or _CacheCreation(ephemeral_1h_input_tokens=for_an_hour)
        hour = summed(kept.ephemeral_1h_input_tokens, more.cache_creation.ephemeral_1h_input_tokens)
        usage.cache_creation = _CacheCreation(kept.ephemeral_5m_input_tokens, hour)


def _report_loose(meter: Meter, document: dict[str, object], final: bool) -> None:
    """Report the usage in an event with other types than documented; `final` marks the last report."""
    message = document.get("message")
    holder = message if isinstance(message, dict) else document
    meter.detail.answered_by(holder.get("model"))
    usage = holder.get("usage")
    if isinstance(usage, dict):
        _report(meter, msgspec.json.encode(usage), final and holder is document)
        meter.marked = True


def _closing(meter: Meter) -> bytes:
    """Return events that close the open content block, and end the message with `stop_reason: max_tokens`."""
    events: list[dict[str, object]] = []
    if meter.position >= 0:
        events.append({"type": "content_block_stop", "index": meter.position})
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {"output_tokens": meter.usage().output},
        }
    )
    events.append({"type": "message_stop"})
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (str(event["type"]).encode(), msgspec.json.encode(event))
        for event in events
    )


def _failing(meter: Meter, body: bytes) -> bytes:
    return b"event: error\ndata: %b\n\n" % body


_TEXTS = re.compile(rb'"(?P<text>text|thinking|partial_json)"[ \t]*:[ \t]*"')
DIALECT = Dialect(_read_whole, _read_event, _closing, _failing, texts=_TEXTS, ending=ENDING)
