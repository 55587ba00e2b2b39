"""The maximum of tokens in text beyond ASCII, by its alphabets and by the tokenizer of its model. Pure.

The numbers are one and a half times those of texts in each alphabet, as OpenAI's tokenizers count them. A
byte of any other character is a token, and so is each byte if the model's tokenizer is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

O200K, CL100K = "o200k_base", "cl100k_base"
TOKENIZERS: Final = (O200K, CL100K)
# The first and the last block of 256 characters, and tenths of a token for a character in these, by each of
# `TOKENIZERS`. The most frequent ones come first. A character beyond U+FFFF counts as two, as in UTF-16.
_ALPHABETS: Final = (
    (0x00, 0x00, 12, 14),  # Latin of Western Europe
    (0x20, 0x20, 15, 20),  # dashes, quotation marks, currencies
    (0x04, 0x04, 6, 10),  # Cyrillic
    (0x4E, 0x9F, 16, 22),  # Chinese
    (0x30, 0x30, 13, 16),  # Japanese
    (0xAC, 0xD7, 11, 16),  # Korean
    (0xFF, 0xFF, 13, 16),  # wide letters and marks
    (0x01, 0x02, 12, 16),  # other Latin
    (0x1E, 0x1E, 12, 16),  # Vietnamese
    (0x06, 0x06, 7, 14),  # Arabic, Persian, Urdu
    (0x07, 0x07, 20, 20),  # other characters of two bytes
    (0x09, 0x09, 6, 18),  # Devanagari, Bengali
    (0x03, 0x03, 6, 13),  # Greek
    (0x05, 0x05, 7, 22),  # Armenian, Hebrew
    (0x0E, 0x0E, 8, 14),  # Thai
    (0x0A, 0x0C, 8, 25),  # Gurmukhi, Gujarati, Oriya, Tamil, Telugu, Kannada
    (0x0D, 0x0D, 9, 28),  # Malayalam, Sinhala
    (0x10, 0x10, 8, 30),  # Georgian, Burmese
    (0x17, 0x17, 12, 30),  # Khmer
    (0x21, 0x2B, 20, 30),  # signs, arrows, boxes
    (0xD8, 0xDF, 15, 18),  # emoji
)
_ASCII: Final = bytes(range(128))
_THAI: Final = b"\x0e"
# Lao is in the same block as Thai: these are the first bytes of its characters.
_LAO: Final = (b"\xe0\xba", b"\xe0\xbb")
_LAO_TENTHS: Final = 30
_UNKNOWN_TENTHS: Final = 30  # as many tokens as such a character has bytes
_OF_BLOCK: Final[Mapping[str, tuple[tuple[bytes, int], ...]]] = {
    name: tuple([(bytes(range(row[0], row[1] + 1)), row[2 + at]) for row in _ALPHABETS])
    for at, name in enumerate(TOKENIZERS)
}


def rare_tokens(body: bytes, tokenizer: str) -> int:
    """Return an upper bound of the tokens in the non-ASCII characters of a body."""
    rare = body.translate(None, _ASCII)
    known = _OF_BLOCK.get(tokenizer)
    if known is None:
        return len(rare)
    left = rare.decode("utf-8", "replace").encode("utf-16-le", "surrogatepass")[1::2]
    tenths = 0
    for blocks, each in known:
        rest = left.translate(None, blocks)
        count = len(left) - len(rest)
        if count:
            tenths += count * each
            if blocks == _THAI:
                lao = rare.count(_LAO[0]) + rare.count(_LAO[1])
                tenths += lao * (_LAO_TENTHS - each)
        if not rest:
            return -(-tenths // 10)
        left = rest
    return -(-(tenths + len(left) * _UNKNOWN_TENTHS) // 10)
