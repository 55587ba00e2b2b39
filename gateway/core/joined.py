"""Parts of a message in one row of bytes: texts as they are, numbers as doubles or by their digits. Pure.

In C, where that is compiled, no number becomes another object on the way. The code without it is the
definition.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from struct import Struct, unpack_from

Part = bytes | str | int
_double = Struct("<d").pack


def pack_parts(*parts: Part) -> bytes:
    """The parts in a row, whole numbers as scripts take them (f64 of a layout)."""
    return b"".join([_double(one) if isinstance(one, int) else _text(one) for one in parts])


def say_parts(*parts: Part) -> bytes:
    """The parts in a row, whole numbers of up to 64 bits by their digits."""
    return b"".join([b"%d" % one if isinstance(one, int) else _text(one) for one in parts])


def unpack_numbers(packed: bytes) -> tuple[int, ...]:
    """The whole numbers that scripts answer (i64 of a layout), up to the last whole one."""
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
