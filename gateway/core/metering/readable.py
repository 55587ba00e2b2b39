"""Read an upstream's JSON that is odd in places: its counts do not answer for what they stand among.

A text that is cut inside a letter ends in half a pair of surrogates, some servers write `NaN` for a
probability or a tab as it is, and what a model hands to a tool may be nested without end. No strict
decoder takes such a document. Here each such place alone is made plain: half a letter reads U+FFFD, what
is no number reads `true`, which is no count and no name either, and what is nested too deep is an empty
text. All else stays as it came and is decoded as strictly as ever.

The scan is linear; what has more such places than `ODD_MAX` stays unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T")

ODD_MAX = 1 << 18  # places in a document
DEPTH_MAX = 100  # objects and lists inside each other
BRACKETS_MAX = 1 << 18  # looked at, where a document is nested too deep
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# No control character may stand in a text, and elsewhere each is as good as white space.
_CONTROLS = bytes.maketrans(bytes(range(32)), b" " * 32)
# Alike in a text and outside of it, so that nobody has to know where texts begin.
_NO_NUMBER = re.compile(rb"(?<=[:,\[ ])(?:-?Infinity|NaN)(?=[,\]} ])")
_HEX = rb"[0-9a-fA-F]"
_HIGH, _LOW = rb"u[dD][89abAB]" + _HEX + rb"{2}", rb"u[dD][c-fC-F]" + _HEX + rb"{2}"
_ODD_ESCAPE = re.compile(
    rb"\\(?<!\\\\)((?:\\\\)*+)"
    rb"(?:" + _HIGH + rb"(?!\\" + _LOW + rb")|(?<!\\" + _HIGH + rb"\\)" + _LOW
    + rb"|u(?!" + _HEX + rb'{4})|(?!["\\/bfnrtu]))'
)  # fmt: skip
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+([\[\]{}])', re.DOTALL)


def decoded(decode: Callable[[bytes], T], document: bytes) -> T:
    """What a decoder makes of a document, or of what is readable of it; raises one of `UNREADABLE`."""
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
    """The document with each place that no decoder takes made plain."""
    if not document.isascii():
        document = document.decode("utf-8", "replace").encode()
    document = document.translate(_CONTROLS)
    document = _ODD_ESCAPE.sub(rb"\1\\ufffd", document, ODD_MAX)
    if b"NaN" in document or b"Infinity" in document:
        document = _NO_NUMBER.sub(b"true", document, ODD_MAX)
    return document


def _flat(document: bytes) -> bytes:
    """The document without what is nested too deep."""
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
