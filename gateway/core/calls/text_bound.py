"""The most tokens that the strings of a JSON body can have, whatever they say. Pure.

A tokenizer of OpenAI's cuts a text into pieces by a pattern, and merges the bytes of each piece: again and
again the two neighbours whose whole stands first in its list. `merges.xz` has the first entries of each list
(`deploy/text_merges.py` makes it). The tokenizer merges by these until none applies, and only then by a later
entry. Each further merge makes one token less. So the count by the first entries is never less than the
tokenizer's, for any text, and never more than the bytes.

Two neighbours become an entry only if they are the last two parts of that entry alone: what lies around them
changes nothing between them. So one pair an entry is enough.

`_text.c` does the same in C; this is the definition.
"""

from __future__ import annotations

import heapq
import json
import lzma
import re
import sys
import unicodedata
from array import array
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from gateway.core.calls.alphabets import O200K, TOKENIZERS

# A model whose tokenizer nobody publishes counts as the dearer of the known ones, and a fifth more: an
# estimate, which no table can prove.
UNKNOWN_TENTHS: Final = 12
PIECE_BYTES_MAX: Final = 4_096  # a longer piece has a token a byte
_SINGLES: Final = 256  # bytes: the first entries of a list
_KINDS: Final = 0x32000  # characters behind these are marks or none of the kinds
_OTHER, _UPPER, _LOWER, _BOTH, _MARK, _NUMBER, _SPACE, _LINE_END = range(8)
_KIND_OF: Final = {
    "Lu": _UPPER, "Lt": _UPPER, "Ll": _LOWER, "Lo": _BOTH, "Lm": _BOTH, "Mn": _MARK, "Mc": _MARK,
    "Me": _MARK, "Nd": _NUMBER, "Nl": _NUMBER, "No": _NUMBER,
}  # fmt: skip
_BLANKS: Final = frozenset(
    {9, 11, 12, 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
)
FOLDED_MAX: Final = 4_096  # characters whose kinds are remembered
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_LONG_S: Final = 0x17F  # as good as an s behind an apostrophe

# Returns the tokens of one text. Returns what `bound_tokens` does, by the number of a tokenizer.
Count = Callable[[str], int]
BoundInC = Callable[[bytes, int, bool], tuple[int, int] | None]


def _kinds() -> bytes:
    return bytes(map(_kind, range(_KINDS)))


def _kind(code: int) -> int:
    """Return the kind of a character."""
    if code in _BLANKS or code in {10, 13}:
        return _SPACE if code in _BLANKS else _LINE_END
    return _KIND_OF.get(unicodedata.category(chr(code)), _OTHER)


def _tables() -> dict[str, tuple[bytes, array[int], array[int]]]:
    """Return the ids of all bytes, and of the left and right parts of each entry, by tokenizer."""
    raw, found, at = lzma.decompress((Path(__file__).parent / "merges.xz").read_bytes()), {}, 0
    for name in TOKENIZERS:
        count = int.from_bytes(raw[at : at + 2], "little")
        at += 2
        ids, at = raw[at : at + _SINGLES], at + _SINGLES
        parts = [raw[at + number * count : at + (number + 1) * count] for number in range(4)]
        at += 4 * count
        found[name] = ids, _joined(*parts[:2]), _joined(*parts[2:])
    return found


def _joined(low: bytes, high: bytes) -> array[int]:
    """Return the numbers that have these lower and higher bytes."""
    both, numbers = bytearray(2 * len(low)), array("H")
    both[::2], both[1::2] = low, high
    numbers.frombytes(both)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def prepare(compiled: Any) -> BoundInC:
    """Return the function of `_text.c`, once it has the tables."""
    for number, (ids, left, right) in enumerate(_tables().values()):
        compiled.load(number, ids, left, right)
    compiled.classify(_kinds())
    found: BoundInC = compiled.bound
    return found


def load() -> None:
    """Load the tables, which takes some 40 ms, and longer where nothing is compiled."""
    if bound_in_c() is None:
        _ranks()


@lru_cache(1)
def bound_in_c() -> BoundInC | None:
    """Return the function of `_text.c`; None if it is not compiled."""
    try:
        compiled = import_module("gateway.core.calls._text")
    except ImportError:
        return None
    return prepare(compiled)


def bound_tokens(body: bytes, tokenizer: str, *, rare_alone: bool = False) -> tuple[int, int] | None:
    """Return the most tokens of a JSON body, and of how many of its bytes; None if it is not readable.

    Each string counts, names included, and each byte between them. With `rare_alone` only strings with
    characters beyond ASCII count. `tokenizer` is empty if none is public.
    """
    if tokenizer:
        return _bound_by(body, tokenizer, rare_alone)
    bounds = [_bound_by(body, name, rare_alone) for name in TOKENIZERS]
    if None in bounds:
        return None
    tokens, covered = max([bound for bound in bounds if bound is not None])
    return min(-(-tokens * UNKNOWN_TENTHS // 10), covered), covered


def _bound_by(body: bytes, tokenizer: str, rare_alone: bool) -> tuple[int, int] | None:
    bound = bound_in_c()
    if bound is not None:
        return bound(body, TOKENIZERS.index(tokenizer), rare_alone)
    return counted(body, lambda text: most_tokens(text, tokenizer), rare_alone=rare_alone)


def counted(body: bytes, count: Count, *, rare_alone: bool = False) -> tuple[int, int] | None:
    """Return the tokens of the strings in a JSON body by `count`, and of how many bytes, as `bound_tokens`."""
    tokens = covered = at = 0
    while True:
        match = _STRING.search(body, at)
        between = (len(body) if match is None else match.start()) - at
        if not rare_alone:
            tokens, covered = tokens + between, covered + between
        if match is None:
            return None if body.find(b'"', at) >= 0 else (tokens, covered)
        at, raw = match.end(), match[1]
        if rare_alone and raw.isascii():
            continue
        text = _plain(match[0])
        if text is None:
            return None
        tokens, covered = tokens + count(text), covered + len(match[0])


def _plain(raw: bytes) -> str | None:
    """Return the text of a string in JSON; None for an escape that no writer of ours makes."""
    escapes = raw.replace(b"\\\\", b"")
    if any(not part.startswith(b"00") or part[2:3] > b"7" for part in escapes.split(b"\\u")[1:]):
        return None
    try:
        text: str = json.loads(raw, strict=False)
    except ValueError:
        return None
    return text


def most_tokens(text: str, tokenizer: str) -> int:
    """Return the most tokens of a text, as `_text.c` does."""
    folded, at, tokens = text.translate(_folded), 0, 0
    for match in _PIECE[tokenizer].finditer(folded):
        tokens += _piece_tokens(text[at : match.end()].encode(), tokenizer)
        at = match.end()
    return tokens


class _Fold(dict[int, str]):
    """For each character that was met one that stands for its kind in `_PIECE`: itself, if it is ASCII."""

    def __missing__(self, code: int) -> str:
        if len(self) >= FOLDED_MAX:
            self.clear()
        sign = _SIGNS[_kind(code)] if 128 <= code < _KINDS else chr(code)
        self[code] = "s" if code == _LONG_S else sign
        return self[code]


_SIGNS: Final = "!Aa\xaa\xa80\t\n"
_folded = _Fold()


def _pattern(tokenizer: str) -> re.Pattern[str]:
    """Return the pattern of a tokenizer's pieces, as tiktoken 0.14.0 has it, for text that was folded."""
    marks, spaces = "\xa8\U000e0100-\U000e01ef", " \t\n\r\v\f"
    letters, heads, tails = "A-Za-zª", f"A-Zª{marks}", f"a-zª{marks}"
    prefix, end = rf"[^\r\n{letters}0-9]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    if tokenizer == O200K:
        return re.compile(
            rf"{prefix}[{heads}]*[{tails}]+{end}|{prefix}[{heads}]+[{tails}]*{end}|[0-9]{{1,3}}"
            rf"| ?[^{spaces}{letters}0-9]+[\r\n/]*|[{spaces}]*[\r\n]+|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
        )
    return re.compile(
        rf"'(?i:[sdmt]|ll|ve|re)|{prefix}+[{letters}]++|[0-9]{{1,3}}+| ?[^{spaces}{letters}0-9]++[\r\n]*+"
        rf"|[{spaces}]++\Z|[{spaces}]*[\r\n]|[{spaces}]+(?![^{spaces}])|[{spaces}]"
    )


_PIECE: Final = {name: _pattern(name) for name in TOKENIZERS}


@lru_cache(1)
def _ranks() -> dict[str, _Merges]:
    return {name: _Merges(*tables) for name, tables in _tables().items()}


class _Merges:
    """The merges of a tokenizer, found by a hash of both parts: `slots` has the place of each entry, from 1 on."""

    def __init__(self, ids: bytes, left: array[int], right: array[int]) -> None:
        self.ids, self._left, self._right = ids, left, right
        self._slots = array("H", bytes(2 << (3 * len(left) // 2).bit_length()))
        for entry, (first, last) in enumerate(zip(left, right, strict=True), 1):
            slot = self._slot(first, last)
            while self._slots[slot]:
                slot = (slot + 1) % len(self._slots)
            self._slots[slot] = entry

    def whole(self, first: int, last: int) -> int:
        """Return the id of two parts together; 0 if they are no entry."""
        slot = self._slot(first, last)
        while entry := self._slots[slot]:
            if self._left[entry - 1] == first and self._right[entry - 1] == last:
                return _SINGLES + entry - 1
            slot = (slot + 1) % len(self._slots)
        return 0

    def _slot(self, first: int, last: int) -> int:
        return ((first << 16 | last) * 0x9E3779B1 >> 12) % len(self._slots)


@lru_cache(8_192)
def _piece_tokens(piece: bytes, tokenizer: str) -> int:
    """Return the tokens of a piece after its merges."""
    size = len(piece)
    if size > PIECE_BYTES_MAX:
        return size
    merges = _ranks()[tokenizer]
    ids, behind = [merges.ids[byte] for byte in piece], list(range(1, size + 1))
    ahead, left, heap = list(range(-1, size - 1)), size, list[tuple[int, int, int, int]]()

    def look(place: int) -> None:
        after = behind[place]
        if after == size:
            return
        if whole := merges.whole(ids[place], ids[after]):
            heapq.heappush(heap, (whole, place, ids[place], ids[after]))

    for place in range(size):
        look(place)
    while heap:
        rank, place, first, second = heapq.heappop(heap)
        after = behind[place]
        if ids[place] != first or after >= size or ids[after] != second:
            continue
        ids[place], ids[after], behind[place], left = rank, -1, behind[after], left - 1
        if behind[after] < size:
            ahead[behind[after]] = place
        look(place)
        if ahead[place] >= 0:
            look(ahead[place])
    return left
