#!/usr/bin/env python3
"""Make the table of first merges: `python deploy/text_merges.py`, where bpe-openai is installed.

Writes `gateway/core/calls/merges.xz` from the lists of o200k_base and cl100k_base, which the extra `tokenizer`
brings. `gateway/core/calls/text_bound.py` says what they are for.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

PLACE: Final = Path(__file__).resolve().parent.parent / "gateway" / "core" / "calls" / "merges.xz"
TABLE_BYTES_MAX: Final = 64 << 10
# How many entries of each list fit: more of the newer one, whose models are asked more.
FIRST: Final = {"o200k_base": 19_000, "cl100k_base": 4_800}
_SINGLES: Final = 256
_FILTER: Final = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}


def make_table() -> bytes:
    """Return the table; ImportError where the lists are not installed."""
    package = import_module("bpe_openai")
    raw = b"".join(
        columns(dict(package.get_encoding(name)._mergeable_ranks), first)  # noqa: SLF001  # as in tiktoken
        for name, first in FIRST.items()
    )
    table = lzma.compress(raw, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=[_FILTER])
    if len(table) > TABLE_BYTES_MAX:
        raise ValueError(f"{len(table)} bytes are too many")
    return table


def columns(ranks: Mapping[bytes, int], first: int) -> bytes:
    """Return the first entries of a list: how many, the ids of the bytes, and the two parts of each entry.

    Raise ValueError unless each is merged from two earlier ones, which the count by the first entries needs.
    """
    entries = sorted(ranks, key=ranks.__getitem__)[:first]
    if [ranks[entry] for entry in entries] != list(range(first)):
        raise ValueError("the ids are not ranks")
    ids = bytes(ranks[bytes([byte])] for byte in range(_SINGLES))
    pairs = [parts_of(entry, ranks) for entry in entries[_SINGLES:]]
    lefts, rights = zip(*pairs, strict=True)
    parts = [bytes(part >> shift & 255 for part in side) for side in (lefts, rights) for shift in (0, 8)]
    return b"".join([len(pairs).to_bytes(2, "little"), ids, *parts])


def parts_of(entry: bytes, ranks: Mapping[bytes, int]) -> tuple[int, int]:
    """Return the ids of the two parts that an entry is merged from in the end."""
    parts = [entry[at : at + 1] for at in range(len(entry))]
    while len(parts) > 2:
        _, at = min((ranks.get(parts[at] + parts[at + 1], len(ranks)), at) for at in range(len(parts) - 1))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    left, right = ranks[parts[0]], ranks[parts[1]]
    if max(left, right) >= ranks[entry]:
        raise ValueError(f"{entry!r} is not merged from earlier entries")
    return left, right


if __name__ == "__main__":
    PLACE.write_bytes(make_table())
    sys.stdout.write(f"{PLACE}: {PLACE.stat().st_size} bytes\n")
