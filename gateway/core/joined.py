"""Concatenate the parts of a message: texts as they are, numbers as doubles or by their digits. Pure.

`packed`, `said` and `numbers` are `pack_parts`, `say_parts` and `unpack_numbers`, in C (`_joined.c`) where
that is compiled: there no number becomes another object on the way. The functions here are the definition.

TypeError where a part is something else, UnicodeEncodeError where a text is no UTF-8, OverflowError where
a number is beyond all doubles, and in `said` of C beyond 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from struct import Struct, unpack_from

Part = bytes | str | int
_double = Struct("<d").pack


def pack_parts(*parts: Part) -> bytes:
    """Join the parts, each number as 8 bytes for scripts (f64 of a layout: little-endian double)."""
    return b"".join([_double(one) if isinstance(one, int) else _text(one) for one in parts])


def say_parts(*parts: Part) -> bytes:
    """Return the parts, each number by its decimal digits; it has 64 bits with its sign at most."""
    return b"".join([b"%d" % one if isinstance(one, int) else _text(one) for one in parts])


def unpack_numbers(packed: bytes) -> tuple[int, ...]:
    """Unpack the numbers of a script's answer (i64 of a layout: 8 bytes, little-endian), whole ones alone."""
    return unpack_from(f"<{len(packed) // 8}q", packed)


def _text(part: bytes | str) -> bytes:
    return part.encode() if isinstance(part, str) else part


packed: Callable[..., bytes]
said: Callable[..., bytes]
numbers: Callable[[bytes], tuple[int, ...]]
try:
    _joined = import_module("gateway.core._joined")
    packed, said, numbers = _joined.packed, _joined.said, _joined.numbers
except ImportError:
    packed, said, numbers = pack_parts, say_parts, unpack_numbers
