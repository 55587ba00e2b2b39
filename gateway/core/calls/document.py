"""The JSON document of a metered call: read once, decided on, and written again for its upstream.

Parsers disagree about names that come twice, numbers no double holds and bytes that are not
UTF-8: those are refused. All else is sent as it was understood here, so that nobody behind can
understand it otherwise.
"""

from __future__ import annotations

import json
import math
import re

import msgspec

from gateway.errors import InvalidRequest, RequestTooLarge

OBJECTS_MAX = 50_000  # objects and lists of one document: each costs up to 0.5 µs to read
STRINGS_MAX = 100_000  # names included: 0.1 µs
NUMBERS_MAX = 320_000  # all other values: 0.1 µs. Embeddings are asked for with 300,000 tokens as numbers
BACKSLASHES_MAX = 500_000  # of escapes in strings: 0.03 µs
OUTSIDE_BYTES_MAX = 8 << 20  # of numbers, marks and blanks outside strings
DIGITS_MAX = 4_300  # of one integer: what Python reads in a bounded time
LONG_DIGITS_MAX = 309  # of one integer in a large body: the longest a double holds
UNCOUNTED_BYTES_MAX = 32 << 10  # a body no longer than this cannot hold too much
LIGHT_BYTES_MAX = (
    256 << 10
)  # one no longer than this takes a millisecond, if it has no more than so many marks
LIGHT_MARKS_MAX = 10_000
NAMED_PARTS_MAX = 4_000  # strings, numbers and brackets looked through to name the field that is wrong
PARAM_CHARACTERS_MAX = 256

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_KIND = re.compile(r"^(Number|Integer value) out of range")
_PART = re.compile(
    rb'("(?:[^"\\]++|\\.)*+")([ \t\r\n]*+:)?|[-+0-9][-+.0-9a-zA-Z]*+|NaN|Infinity|[{}\[\],]', re.DOTALL
)
_ALIKE = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))


def is_light(body: bytes) -> bool:
    """Whether a body is read in about a millisecond, whatever is in it."""
    size = len(body)
    if size <= UNCOUNTED_BYTES_MAX:
        return True
    if size > LIGHT_BYTES_MAX:
        return False
    return sum(map(body.count, (b",", b"[", b"{", b"\\"))) <= LIGHT_MARKS_MAX


def read_document(body: bytes) -> dict[str, object]:
    """Read one JSON object; `InvalidRequest` or `RequestTooLarge` names what is wrong."""
    if len(body) > UNCOUNTED_BYTES_MAX:
        _check_size(body)
    try:
        document = _decode(body)
    except msgspec.MsgspecError as error:
        raise _unreadable(body, str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not valid UTF-8.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return document


def write_document(document: dict[str, object]) -> bytes:
    """Write a document in UTF-8, without blanks; every colon of it stands as itself."""
    try:
        return _encode(document)
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error


def check_names(body: bytes, written: bytes, added: int) -> None:
    """Refuse a body in which a name comes twice in one object, at any depth, however it is spelled.

    `written` is its document with `added` more members. Of two equal names a document keeps
    one, so one colon less is written than was read; inside strings, each colon read is one written.
    """
    if written.startswith(body[:-1]):
        return  # it came as it is written, but for what was added after it
    read = body.count(b":")
    if b"\\" in body and b"\\u003" in body:
        plain = body.replace(b"\\\\", b"")  # what is left before `u003a` is an escape
        read += plain.count(b"\\u003a") + plain.count(b"\\u003A")
    if read + added != written.count(b":"):
        param = _find(body, twice=True)
        raise InvalidRequest(f"The field {param or 'name'} appears twice.", param=param)


def _check_size(body: bytes) -> None:
    """Refuse what would hold up every other call: counted in C, without making anything of it."""
    marks = body
    backslashes = body.count(b"\\")
    if backslashes > BACKSLASHES_MAX:
        raise RequestTooLarge(f"The body has more than {BACKSLASHES_MAX} backslashes.")
    if backslashes:
        marks = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if marks.count(b'"') > 2 * STRINGS_MAX:
        raise RequestTooLarge(f"The body has more than {STRINGS_MAX} strings and names.")
    outside = b"".join(marks.split(b'"')[::2])
    if len(outside) > OUTSIDE_BYTES_MAX:
        raise RequestTooLarge(f"The body has more than {OUTSIDE_BYTES_MAX} bytes outside its strings.")
    if outside.count(b"[") + outside.count(b"{") > OBJECTS_MAX:
        raise RequestTooLarge(f"The body has more than {OBJECTS_MAX} objects and lists.")
    if outside.count(b",") > STRINGS_MAX + OBJECTS_MAX + NUMBERS_MAX:
        raise RequestTooLarge(f"The body has more than {NUMBERS_MAX} numbers.")
    if b"0" * (LONG_DIGITS_MAX + 1) in outside.translate(_ALIKE):
        raise InvalidRequest(f"A number of the body has more than {LONG_DIGITS_MAX} digits.")


def _unreadable(body: bytes, message: str) -> InvalidRequest:
    """Say why a body is no document, and name its field where the field is to blame."""
    if not body.strip():
        return InvalidRequest("The body is empty, and a JSON object is needed.")
    kind = _KIND.match(message)
    param = _find(body, twice=False)
    if kind is not None:
        return InvalidRequest(f"{kind[0]} in {param or 'the body'}.", param=param)
    return InvalidRequest(f"{message}.", param=param)


def _find(body: bytes, *, twice: bool) -> str | None:
    """The path of the first name that comes twice, or of the first number that is none.

    The first `NAMED_PARTS_MAX` parts are looked through; None where it is not among them.
    """
    path: list[str | int] = []
    names: list[set[str]] = []
    for count, match in enumerate(_PART.finditer(body)):
        part = match[0]
        if count > NAMED_PARTS_MAX or (not path and part not in b"{["):
            return None
        if match[2] is not None:
            path[-1] = name = _text(match[1])
            if twice and name in names[-1]:
                return _joined(path)
            names[-1].add(name)
        elif part in b"{[":
            path.append("" if part == b"{" else 0)
            names.append(set())
        elif part in b"}]":
            path.pop()
            names.pop()
        elif part == b",":
            last = path[-1]
            path[-1] = last + 1 if isinstance(last, int) else last
        elif not twice and part[:1] != b'"' and not _is_number(part):
            return _joined(path)
    return None


def _is_number(part: bytes) -> bool:
    if len(part) > DIGITS_MAX:
        return False
    try:
        return math.isfinite(float(part)) if not part.lstrip(b"-").isdigit() else True
    except ValueError:
        return False


def _text(raw: bytes) -> str:
    try:
        return str(json.loads(raw))
    except ValueError:
        return ""


def _joined(path: list[str | int]) -> str | None:
    return ".".join(map(str, path))[:PARAM_CHARACTERS_MAX] or None
