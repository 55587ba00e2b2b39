"""Concatenate the parts of a message: texts unchanged, numbers as doubles or as decimal digits. Pure.

`packed`, `said` and `numbers` are `pack_parts`, `say_parts` and `unpack_numbers`, or their version in C
(`_joined.c`) if it is compiled, which creates no intermediate objects. The functions here are the definition.
TypeError for a part of another type, UnicodeEncodeError for text that is not UTF-8, OverflowError for a
number beyond doubles, and for `said` in C beyond 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from struct import Struct, unpack_from

Part = bytes | str | int
_double = Struct("<d").pack


def pack_parts(*parts: Part) -> bytes:
    """Join texts and numbers to one value for Lua scripts; a number becomes a little-endian double."""
    return b"".join([
        part if type(part) is bytes
        else _double(part) if isinstance(part, int)
        else part.encode() if isinstance(part, str) else part
        for part in parts
    ])  # fmt: skip


def say_parts(*parts: Part) -> bytes:
    """Join texts and numbers to one text; a number (64 bits at most) becomes decimal digits."""
    return b"".join([
        part if type(part) is bytes
        else b"%d" % part if isinstance(part, int)
        else part.encode() if isinstance(part, str) else part
        for part in parts
    ])  # fmt: skip


def unpack_numbers(packed: bytes) -> tuple[int, ...]:
    """Unpack the integers of a script's answer: 8 bytes each, little-endian."""
    return unpack_from(f"<{len(packed) // 8}q", packed)


packed: Callable[..., bytes]
said: Callable[..., bytes]
numbers: Callable[[bytes], tuple[int, ...]]
try:
    _joined = import_module("gateway.core._joined")
    packed, said, numbers = _joined.packed, _joined.said, _joined.numbers
except ImportError:
    packed, said, numbers = pack_parts, say_parts, unpack_numbers
