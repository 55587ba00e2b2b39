"""Read what can be read of an upstream's answer that is not of its documented types.

An upstream may be wrong in any way; a meter never fails for it and never believes it blindly.
"""

from __future__ import annotations

import re
from math import ceil, floor
from typing import TypeGuard

import msgspec

from gateway.core.metering.meter import CLOSED, Meter
from gateway.core.metering.readable import UNREADABLE, decoded

_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# The fields that hold produced text in any of the APIs, complete or broken off.
_TEXT = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|refusal|arguments|thinking|partial_json|delta)"'
    rb'[ \t\r\n]*+:[ \t\r\n]*+"((?:[^"\\]++|\\.)*+)',
    re.DOTALL,
)
# What says in any of the APIs that a choice, or the whole answer, is finished.
_FINISH = re.compile(
    rb'"(?:finish_reason|stop_reason|finishReason|blockReason)"[ \t\r\n]*+:[ \t\r\n]*+(?!null\b)'
)
_CLOSE = re.compile(
    rb'"type"[ \t\r\n]*+:[ \t\r\n]*+"(?:message_stop|response\.(?:completed|incomplete|failed|cancelled))"'
)


def loose_document(document: bytes) -> dict[str, object]:
    """Return the JSON object, or an empty one where there is none."""
    try:
        read = decoded(msgspec.json.decode, document)
    except UNREADABLE:
        return {}
    return read if isinstance(read, dict) else {}


def is_object(document: bytes) -> bool:
    """Whether a document is a JSON object, as far as it can be made readable."""
    try:
        decoded(_object, document)
    except UNREADABLE:
        return False
    return True


def is_there(raw: msgspec.Raw | msgspec.UnsetType) -> TypeGuard[msgspec.Raw]:
    """Whether a field is there and not null."""
    return raw is not msgspec.UNSET and bytes(raw) != b"null"


def integer(value: object) -> int | None:
    """Return a number of tokens written as an integer or as a float, None for else. A part of one is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return ceil(value) if value > 0 else floor(value)


def text_bytes(document: bytes) -> int:
    """Bytes of produced text in a document, complete or broken off."""
    return sum(match.end(1) - match.start(1) for match in _TEXT.finditer(document))


def texts_in(document: bytes) -> list[str]:
    """Produced text in a document, complete or broken off, as it reads."""
    return [_as_it_reads(match[1]) for match in _TEXT.finditer(document)]


def _as_it_reads(raw: bytes) -> str:
    try:
        return msgspec.json.decode(b'"' + raw + b'"', type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return raw.decode("utf-8", "replace")


def count_text(meter: Meter, data: bytes) -> None:
    """Count the text of an event that could not be decoded, and see whether it ends the answer."""
    size = text_bytes(data)
    if size:
        meter.text_bytes += size
        meter.content_events += 1
    if _FINISH.search(data) is not None:
        meter.finished += 1
    if _CLOSE.search(data) is not None:
        meter.phase = CLOSED
