"""Answers of OpenAI's Responses API: one document, or typed events whose last one has the whole response.

Tokens are `usage.input_tokens` + `usage.output_tokens`, in the response itself or inside
`response.completed`, `response.incomplete` or `response.failed`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway.core.billing.price_book import Counts
from gateway.core.families.family import object_in, told_of
from gateway.core.families.openai.calls import OBJECTS, ids_in_item
from gateway.core.families.openai.reports import read_usage
from gateway.core.families.openai.tool_usage import Parts, note_tool_usage
from gateway.core.metering.content import UNCOUNTED, content_bytes
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.meter import Detail, Dialect, Meter
from gateway.core.metering.reading import (
    UNREADABLE,
    count_text,
    decoded,
    is_there,
    loose_document,
    summed,
)
from gateway.core.metering.report import may_hold_more, see_content, see_whole


class _Item(msgspec.Struct):
    type: Any = None
    action: Any = None


class _Response(msgspec.Struct):
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    status: str | None = None
    model: Any = None
    service_tier: Any = None
    output: list[msgspec.Raw] | None = None
    tools: msgspec.Raw = msgspec.Raw(b"[]")
    tool_usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _ResponseEvent(msgspec.Struct):
    type: str | None = None
    delta: str | None = None
    sequence_number: int | None = None
    output_index: Any = None
    item: msgspec.Raw = msgspec.Raw(b"null")
    response: _Response | None = None


# The end of the types of items that are uses of the provider's tools, such as `web_search_call`.
_TOOL = "_call"
_OWN_TOOLS = frozenset({"function_call", "custom_tool_call", "mcp_call"})
# The event with a whole item, which may be sent back in the next request.
_ITEM_DONE = "response.output_item.done"
# Opening or searching a page of the results is no search.
_READING = ({"type": "open_page"}, {"type": "find_in_page"})
ENDING = ENDINGS["responses"]
# Events that announce parts, and events with the response so far.
_NO_CONTENT = (".created", ".queued", ".in_progress", ".searching", "error", *ENDING.events)
# Events with a whole item or part, which earlier events may have sent in pieces.
_WHOLE = (".done", ".added")
# Fields with names of items or results of tools, which the model did not produce.
_BROUGHT = UNCOUNTED.union(
    {
        "name", "server_label", "container_id", "approval_request_id", "annotations", "output", "outputs",
        "results", "sources", "tools",
    }
)  # fmt: skip
_PLACES_MAX = 1_024  # sizes of a stream by item and kind of event, at most
_OVER = frozenset({"completed", "incomplete", "failed", "cancelled"})
_whole = msgspec.json.Decoder(_Response).decode
_event = msgspec.json.Decoder(_ResponseEvent).decode
_item = msgspec.json.Decoder(_Item).decode
_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_SVG_USAGE = b'"svg_usage"'
_RAW = ("usage", "tools", "tool_usage")  # members that are read by themselves


def _read_whole(meter: Meter, document: bytes) -> None:
    try:
        read = decoded(_whole, document)
    except UNREADABLE:
        _report_loose(meter, loose_document(document))
        return
    _take(meter, read)


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a stream reports: text, usage, the end, and ids of stored objects."""
    try:
        read = decoded(_event, data)
    except UNREADABLE:
        event = loose_document(data)
        response = event.get("response")
        if isinstance(response, dict):
            _report_loose(meter, response)
            see_whole(meter, {"response": response}, _BROUGHT)
        else:
            count_text(meter, data)
        if event.get("type") in ENDING.events:
            meter.close()
        return False
    _see(meter, read, data)
    if read.sequence_number is not None:
        meter.position = read.sequence_number
    if read.type == "error":
        meter.failed = True
    elif read.type in ENDING.events or (read.response is not None and read.response.status in _OVER):
        meter.close()
    if meter.call.objects.keeps and read.response is not None:
        meter.told += told_of(OBJECTS, loose_document(data).get("response"), meter.call.objects.named)
    if meter.call.objects.keeps and read.type == _ITEM_DONE:
        meter.told += ids_in_item(loose_document(bytes(read.item)))
    if read.response is not None:
        _take(meter, read.response)
        if read.response.output and not (meter.final and meter.output):
            see_whole(meter, loose_document(data), _BROUGHT)
    return False


def _see(meter: Meter, read: _ResponseEvent, data: bytes) -> None:
    """Count the content of an event, except for content that was counted with an earlier event."""
    kind, before = read.type or "", meter.text_bytes
    if read.delta:
        meter.saw(read.delta)
        meter.content_events += 1
    seen = meter.text_bytes - before
    if read.response is not None:  # as it stands
        return
    if kind.endswith(_WHOLE):
        if kind == _ITEM_DONE:
            _note_item(meter, bytes(read.item))
        _see_whole(meter, read, data)
    else:
        if not kind.endswith(_NO_CONTENT) and may_hold_more(meter, data, seen):
            see_content(meter, loose_document(data), seen, len(data))
        if meter.text_bytes > before:
            said, place = meter.said, _place(meter, read, "")
            said[place] = said.get(place, 0) + meter.text_bytes - before


def _see_whole(meter: Meter, event: _ResponseEvent, data: bytes) -> None:
    """Count the content of an event that repeats a whole item, as far as its pieces had less.

    Each kind of such events repeats an item once, with all its parts.
    """
    said, before, place = meter.said, _place(meter, event, ""), _place(meter, event, event.type or "")
    told = said[place] = said.get(place, 0) + content_bytes(loose_document(data), _BROUGHT)
    more = told - said.get(before, 0)
    if more > 0:
        said[before] = told
        meter.text_bytes += more
        meter.content_events += 1
        meter.texts = None


def _place(meter: Meter, event: _ResponseEvent, kind: str) -> tuple[int, str]:
    """Return the key for summing sizes of content: (index of the output item, `kind`).

    If there are too many keys, events share one.
    """
    index = event.output_index
    place = index if isinstance(index, int) else -1, kind
    return place if place in meter.said or len(meter.said) < _PLACES_MAX else (-1, "")


def _take(meter: Meter, response: _Response) -> bool:
    """Note what a response says; return whether it reports its usage."""
    if response.status == "failed":
        meter.failed = True
    detail = meter.detail
    detail.answered_by(response.model)
    detail.served_as(response.service_tier)
    _note_items(detail, response.output or ())
    beside = _note_beside(meter, response)
    return is_there(response.usage) and report(meter, bytes(response.usage), beside)


def _note_beside(meter: Meter, response: _Response) -> Parts:
    """Note what a response reports beside its usage, and return the tokens of other models in it."""
    output = response.output or []
    told = bytes(response.tool_usage) if is_there(response.tool_usage) else b""
    if not told and not any(_SVG_USAGE in bytes(item) for item in output):
        return []
    try:
        tools = _raw_list(bytes(response.tools))
    except UNREADABLE:
        tools = []
    return note_tool_usage(meter, told, output, tools)


def _note_items(detail: Detail, output: Iterable[msgspec.Raw]) -> None:
    """Note how often each of the provider's tools was used in an output; unreadable items are skipped."""
    tools = Counter(kind for raw in output if (kind := _tool_of(bytes(raw))))
    for kind, times in tools.items():
        detail.used_tool(kind, times)


def _note_item(meter: Meter, raw: bytes) -> None:
    """Note one use of a tool from a completed output item (`raw`).

    This matters if the stream breaks off before its last event lists all uses.
    """
    kind = _tool_of(raw)
    if kind and meter.detail.used_tool(kind, meter.detail.tools.get(kind, 0) + 1):
        meter.content_events += 1


def _tool_of(raw: bytes) -> str:
    """Return the provider's tool that was used, if an output item is such a use; else an empty text."""
    try:
        item = _item(raw)
    except UNREADABLE:
        return ""
    return str(item.type).removesuffix(_TOOL) if _is_use(item) else ""


def _is_use(item: _Item) -> bool:
    """Return whether an output item is a use of one of the provider's own tools."""
    kind, action = item.type, item.action
    if not isinstance(kind, str) or not kind.endswith(_TOOL) or kind in _OWN_TOOLS:
        return False
    return not isinstance(action, dict) or {"type": action.get("type")} not in _READING


def report(meter: Meter, raw: bytes, beside: Sequence[tuple[str, Counts]] = ()) -> bool:
    """Report the usage in `raw`, and tokens of other models `beside` it; return whether it has any."""
    detail = meter.detail
    if beside:  # tokens of an earlier report have those of the others in them
        detail.image_input = detail.image_output = 0
    numbers = read_usage(meter, raw)
    if numbers is None:
        return False
    used, output, cached, reasoning = numbers
    detail.beside = list(beside)
    for _, counts in beside:
        used, output = summed(used, counts[0], counts[1]), summed(output, counts[4])
        cached, reasoning = cached + counts[1], reasoning + counts[5]
        detail.image_input += counts[8]
        detail.image_output += counts[9]
    meter.report(used, output, cached, reasoning, used + output, final=True)
    return True


def _report_loose(meter: Meter, answer: dict[str, object]) -> None:
    """Report the usage in a response whose fields have other types than documented."""
    fields = {name: msgspec.Raw(msgspec.json.encode(answer[name])) for name in _RAW if name in answer}
    status, output = answer.get("status"), answer.get("output")
    items = output if isinstance(output, list) else []
    response = _Response(
        model=answer.get("model"), service_tier=answer.get("service_tier"),
        status=status if isinstance(status, str) else None,
        output=[msgspec.Raw(msgspec.json.encode(item)) for item in items], **fields,
    )  # fmt: skip
    if _take(meter, response):
        meter.marked = True


def _closing(meter: Meter) -> bytes:
    """Return the event that ends a response as incomplete, with the reason `max_output_tokens`."""
    known = loose_document(meter.opening or b"").get("response")
    response = dict(known) if isinstance(known, dict) else {"object": "response", "output": []}
    counted = meter.usage()
    response["status"] = "incomplete"
    response["incomplete_details"] = {"reason": "max_output_tokens"}
    response["usage"] = {
        "input_tokens": counted.input,
        "output_tokens": counted.output,
        "total_tokens": counted.total,
    }
    event = {
        "type": "response.incomplete",
        "sequence_number": meter.position + 1,
        "response": response,
    }
    return b"event: response.incomplete\ndata: " + msgspec.json.encode(event) + b"\n\n"


def _failing(meter: Meter, body: bytes) -> bytes:
    """Return an `error` event of the Responses API, with the fields of the error at its top."""
    error = object_in(loose_document(body), "error")
    event = {
        "type": "error",
        "sequence_number": meter.position + 1,
        "code": error.get("code"),
        "message": error.get("message"),
        "param": error.get("param"),
    }
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(event)


_TEXTS = re.compile(
    rb'"(?:(?P<text>delta)|(?P<padding>obfuscation))"[ \t]*:[ \t]*"'
    rb'|"(?P<number>sequence_number)"[ \t]*:[ \t]*'
)
DIALECT = Dialect(_read_whole, _read_event, _closing, _failing, texts=_TEXTS, ending=ENDING, brought=_BROUGHT)
