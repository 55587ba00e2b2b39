"""Usage reports, read by their documented shape, or as far as they can be read.

A report with unknown fields is stored as it came, because the provider may bill these next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from math import ceil, floor
from typing import Any, Final, Generic, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import fields

from gateway.core.metering.content import LooseContent
from gateway.core.metering.meter import CLOSED, Meter

# Read an upstream's JSON with odd places: they must not make its token counts unreadable.
#
# A text that is cut inside a letter ends in half a pair of surrogates, some servers write `NaN` for a
# probability or a tab as it is, and what a model hands to a tool may be nested without end. No strict
# decoder takes such a document. Here each such place alone is made plain: half a letter reads U+FFFD, a
# broken number reads `true`, which is no count and no name either, and a value nested too deep is an empty
# text. All else stays as it came and is decoded as strictly as ever.
#
# The scan is linear; what has more such places than `ODD_MAX` stays unreadable.

ReadableT = TypeVar("ReadableT")

ODD_MAX = 1 << 18  # places in a document
DEPTH_MAX = 100  # objects and lists inside each other
BRACKETS_MAX = 1 << 18  # checked in a document that is nested too deep
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# Control characters are not allowed in texts; elsewhere they are equal to white space.
_CONTROLS = bytes.maketrans(bytes(range(32)), b" " * 32)
# Matches inside texts too, so that no parser has to know where texts begin.
_NO_NUMBER = re.compile(rb"(?<=[:,\[ ])(?:-?Infinity|NaN)(?=[,\]} ])")
_HEX = rb"[0-9a-fA-F]"
_HIGH, _LOW = rb"u[dD][89abAB]" + _HEX + rb"{2}", rb"u[dD][c-fC-F]" + _HEX + rb"{2}"
_ODD_ESCAPE = re.compile(
    rb"\\(?<!\\\\)((?:\\\\)*+)"
    rb"(?:" + _HIGH + rb"(?!\\" + _LOW + rb")|(?<!\\" + _HIGH + rb"\\)" + _LOW
    + rb"|u(?!" + _HEX + rb'{4})|(?!["\\/bfnrtu]))'
)  # fmt: skip
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+([\[\]{}])', re.DOTALL)


def decoded(decode: Callable[[bytes], ReadableT], document: bytes) -> ReadableT:
    """Return the value that `decode` makes of a document; if that fails, decode a repaired document.

    Raise one of the errors in `UNREADABLE` if that fails too.
    """
    try:
        return decode(document)
    except msgspec.ValidationError:
        raise
    except UNREADABLE:
        pass
    plain = readable(document)
    try:
        return decode(plain)
    except RecursionError:
        return decode(_flat(plain))


def readable(document: bytes) -> bytes:
    """Return a JSON document whose invalid characters, escapes and numbers are replaced."""
    if not document.isascii():
        document = document.decode("utf-8", "replace").encode()
    document = document.translate(_CONTROLS)
    document = _ODD_ESCAPE.sub(rb"\1\\ufffd", document, ODD_MAX)
    if b"NaN" in document or b"Infinity" in document:
        document = _NO_NUMBER.sub(b"true", document, ODD_MAX)
    return document


def _flat(document: bytes) -> bytes:
    """Return the document with each value nested deeper than `DEPTH_MAX` replaced by an empty text."""
    kept: list[bytes] = []
    depth = start = 0
    for brackets, match in enumerate(_BRACKET.finditer(document)):
        if brackets == BRACKETS_MAX:
            break
        if match[1] in b"[{":
            depth += 1
            if depth == DEPTH_MAX:
                kept.append(document[start : match.end() - 1])
        else:
            depth -= 1
            if depth == DEPTH_MAX - 1:
                kept.append(b'""')
                start = match.end()
    return b"".join((*kept, document[start:]))


# Read what can be read of an upstream's answer that is not of its documented types.
#
# An upstream may be wrong in any way; a meter never fails for it and never believes it blindly.

_UNSET: Final = msgspec.UNSET
# An object as raw members.
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Fields of any API by which a choice, or the whole answer, ends.
_FINISH = re.compile(
    rb'"(?:finish_reason|stop_reason|finishReason|blockReason)"[ \t\r\n]*+:[ \t\r\n]*+(?!null\b)'
)
_CLOSE = re.compile(
    rb'"type"[ \t\r\n]*+:[ \t\r\n]*+"(?:message_stop|response\.(?:completed|incomplete|failed|cancelled))"'
)


def loose_document(document: bytes) -> dict[str, object]:
    """Return a document as a dict, after repairs if needed; empty if it is not a readable JSON object."""
    try:
        read = decoded(msgspec.json.decode, document)
    except UNREADABLE:
        return {}
    return read if isinstance(read, dict) else {}


def is_object(document: bytes) -> bool:
    """Return whether a document is a JSON object, after repairs."""
    try:
        decoded(_parts, document)
    except UNREADABLE:
        return False
    return True


def is_there(raw: msgspec.Raw | msgspec.UnsetType) -> TypeGuard[msgspec.Raw]:
    """Return whether a field is present and not null."""
    return raw is not _UNSET and bytes(raw) != b"null"


def integer(value: object) -> int | None:
    """Return a number of tokens as an integer, None for other values. Fractions round away from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return ceil(value) if value > 0 else floor(value)


def as_it_reads(raw: bytes) -> str:
    """Return the text of a raw JSON string without quotes, which may be incomplete, with escapes decoded.

    If they cannot be decoded, return the bytes as UTF-8.
    """
    try:
        return msgspec.json.decode(b'"' + raw + b'"', type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return raw.decode("utf-8", "replace")


def count_text(meter: Meter, data: bytes) -> None:
    """Count the text of an undecodable event, and note whether it ends the answer."""
    size = LooseContent(data).size
    if size:
        meter.text_bytes += size
        meter.content_events += 1
        meter.texts = None
    if _FINISH.search(data) is not None:
        meter.finished += 1
    if _CLOSE.search(data) is not None:
        meter.phase = CLOSED


def loose_event(meter: Meter, data: bytes) -> dict[str, object]:
    """Return an event as a dict. If it is no JSON object, count its text and return an empty dict."""
    event = loose_document(data)
    if not event:
        count_text(meter, data)
    return event


T = TypeVar("T", bound=msgspec.Struct)
NO_COUNT: Final = -1  # replaces an invalid number: then the reader counts by itself
_SAYS_NOTHING = frozenset({b"null", b"0", b"0.0", b"false", b'""', b"{}", b"[]"})


class Reports(Generic[T]):
    """Reader of usage reports of one documented shape."""

    def __init__(self, shape: type[T]) -> None:
        self._shape = shape
        self._decode = msgspec.json.Decoder(shape).decode

    def read(self, meter: Meter, raw: bytes) -> T | None:
        """Return the decoded usage report in `raw`, or None if it is no JSON object.

        A value of an undocumented type marks the usage as estimated; a report with an unknown field
        is stored raw.
        """
        try:
            return self._decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        parts = _read(_parts, raw)
        if not parts:
            return None
        fit = _Fit()
        report: T = fit.struct(self._shape, parts)
        if fit.unknown:
            meter.detail.keep(raw)
        if fit.wrong:
            meter.marked = True
        return report


# A value stays raw until its type is known: a value that nobody reads cannot be wrong.
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
text_of = msgspec.json.Decoder(str).decode


class _Fit:
    """Fits a document into a shape.

    `unknown`: it had a field that the shape does not have. `wrong`: a value had the wrong type.
    """

    def __init__(self) -> None:
        self.unknown = self.wrong = False

    def struct(self, shape: type[Any], raw: dict[str, msgspec.Raw]) -> Any:
        """Return a structure of type `shape` from raw fields by name; unreadable fields are None."""
        places = _places(shape)  # type: ignore[arg-type]  # a class can be a key
        self.unknown = self.unknown or any(
            bytes(raw[name]) not in _SAYS_NOTHING for name in raw.keys() - places.keys()
        )
        read = {place: self._value(kind, raw.get(name)) for name, (place, kind) in places.items()}
        return shape(**read)

    def _value(self, kind: Any, raw: msgspec.Raw | None) -> Any:
        """Return a value in its documented type, or None if it is null or cannot be read."""
        if raw is None or bytes(raw) == b"null" or kind is Any:
            return None
        value = self._read_kind(kind, bytes(raw))
        self.wrong = self.wrong or (value is None and kind is not str)
        return value

    def _read_kind(self, kind: Any, raw: bytes) -> Any:
        """Return a value of the type `kind` from JSON, None or NO_COUNT if it has another type."""
        if kind is int:
            number = _read(msgspec.json.decode, raw)
            count = integer(number)
            self.wrong = self.wrong or count is None or not isinstance(number, int)
            return NO_COUNT if count is None else count
        if kind is str:
            return _read(text_of, raw)
        if get_origin(kind) is list:
            elements = _read(_elements, raw)
            return elements and self._read_elements(get_args(kind)[0], elements)
        parts = _read(_parts, raw)
        if get_origin(kind) is dict:
            return parts and {name: self._value(int, count) or 0 for name, count in parts.items()}
        return None if parts is None else self.struct(kind, parts)

    def _read_elements(self, kind: Any, elements: list[msgspec.Raw]) -> list[Any]:
        read = [self._value(kind, element) for element in elements]
        return [part for part in read if part is not None]


def summed(*counts: int | None) -> int:
    """Return the sum of the counts that are not None, or `NO_COUNT` if one of them is negative."""
    there = [count for count in counts if count is not None]
    return NO_COUNT if there and min(there) < 0 else sum(there)


@cache
def _places(shape: type[Any]) -> dict[str, tuple[str, Any]]:
    """Return (Python name, type) of each field of a structure, by its name in JSON."""
    types = get_type_hints(shape)
    return {
        field.encode_name: (
            field.name,
            next(arg for arg in (*get_args(types[field.name]), types[field.name]) if arg is not type(None)),
        )
        for field in fields(shape)
    }


def _read(decode: Any, raw: bytes) -> Any:
    """Decode `raw`, or return None if it does not have the decoder's type."""
    try:
        return decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
