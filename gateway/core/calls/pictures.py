"""The width and height of a picture, by the fields from which all decoders take them. Pure.

PNG, JPEG and plain WebP have one such field, and a picture of another size in the file is none. GIF, AVIF, HEIC and
WebP with more than one picture have several: their size is unknown, and they are held as the largest.
"""

from __future__ import annotations

import binascii
import struct
from typing import Final

# Characters of base64 that are read, at first and at most; multiples of four.
_CHARACTERS: Final = (1 << 10, 64 << 10)
_SEGMENTS_MAX: Final = 64
# Heads of JPEG's frames (ISO 10918-1, B.1.1.3); between them stand tables.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def size_of(text: str) -> tuple[int, int] | None:
    """Return the width and height of a picture in base64; None if they are unknown."""
    for many in _CHARACTERS:
        try:
            size = _size(binascii.a2b_base64(text[:many]))
        except (ValueError, IndexError, struct.error):
            continue  # what is read ends in front of it
        return size if size is not None and min(size) > 0 else None
    return None


def _size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a picture, or None if its format is unknown."""
    if data.startswith(_PNG):
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data[8:16] == b"WEBPVP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if data[8:16] == b"WEBPVP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the first frame of a JPEG, or None."""
    at = 2
    for _ in range(_SEGMENTS_MAX):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
