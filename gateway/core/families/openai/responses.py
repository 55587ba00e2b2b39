"""OpenAI responses: one document, or typed events of which the last holds the whole response.

Tokens are `usage.input_tokens` + `usage.output_tokens`, in the response itself or inside
`response.completed`, `response.incomplete` or `response.failed`.
"""

from __future__ import annotations

import msgspec

from gateway.core.families.family import told_of
from gateway.core.families.openai.objects import OBJECTS
from gateway.core.metering.loose import count_text, integer, loose_document
from gateway.core.metering.meter import CLOSED, Dialect, Meter


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Response(msgspec.Struct):
    usage: _Usage | None = None
    status: str | None = None


class _Event(msgspec.Struct):
    type: str | None = None
    delta: str | None = None
    sequence_number: int | None = None
    response: _Response | None = None


_CLOSING = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_OVER = frozenset({"completed", "incomplete", "failed", "cancelled"})
_whole = msgspec.json.Decoder(_Response).decode
_event = msgspec.json.Decoder(_Event).decode


def _read_whole(meter: Meter, document: bytes) -> None:
    try:
        read = _whole(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        _report_loose(meter, loose_document(document))
        return
    _take(meter, read)


def _read_event(meter: Meter, data: bytes) -> bool:
    try:
        read = _event(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        count_text(meter, data)
        event = loose_document(data)
        response = event.get("response")
        if isinstance(response, dict):
            _report_loose(meter, response)
        if event.get("type") in _CLOSING:
            meter.phase = CLOSED
        return False
    if read.delta:
        meter.saw(read.delta)
        meter.content_events += 1
    if read.sequence_number is not None:
        meter.position = read.sequence_number
    if read.type == "error":
        meter.failed = True
    elif read.type in _CLOSING or (read.response is not None and read.response.status in _OVER):
        meter.phase = CLOSED
    if meter.call.keeps and read.response is not None:
        meter.told += told_of(OBJECTS, loose_document(data).get("response"))
    if read.response is not None:
        _take(meter, read.response)
    return False


def _take(meter: Meter, response: _Response) -> None:
    if response.status == "failed":
        meter.failed = True
    usage = response.usage
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return
    used, output = usage.input_tokens or 0, usage.output_tokens or 0
    details = usage.input_tokens_details
    cached = 0 if details is None else details.cached_tokens or 0
    details = usage.output_tokens_details
    reasoning = 0 if details is None else details.reasoning_tokens or 0
    meter.report(used, output, cached, reasoning, used + output, final=True)


def _report_loose(meter: Meter, response: dict[str, object]) -> None:
    """Take what can be read of a usage that is not of the documented types."""
    usage = response.get("usage")
    if not isinstance(usage, dict):
        return
    used, output = integer(usage.get("input_tokens")), integer(usage.get("output_tokens"))
    if used is None and output is None:
        return
    meter.report(used or 0, output or 0, 0, 0, (used or 0) + (output or 0), final=True)
    meter.marked = True


def _closing(meter: Meter) -> bytes:
    """End the response as incomplete, as if its maximum had been reached."""
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


DIALECT = Dialect(_read_whole, _read_event, _closing)
