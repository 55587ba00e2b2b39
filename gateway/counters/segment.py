"""One file of the settlement log as bytes: how it is laid out, and what can be read back of it.

A file is a header and blocks; a block carries its length and checksum, so what a crash left of
the last one is recognised, and damage in the middle costs the damaged block alone. Pure: whoever
opens and locks files is in `segment_file.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from gateway.counters.packing import SETTLE

FORMAT = 1
# Changed whenever the packed argument of `settle` is: records of another layout are not understood.
ARGUMENT_LAYOUT = 1
ACKNOWLEDGED, SPOOLED, DONE = 1, 2, 3

_SIGNATURE = b"TKSETTLE"
_HEADER = struct.Struct("<8sHHH2x")
# No text of a caller's contains these bytes: they are not UTF-8.
MAGIC = b"\xffTK\xfe"
_BLOCK = struct.Struct("<4sBIIq")
_COVERED = struct.Struct("<BIq")
_RECORD = struct.Struct("<HI")
_OFFSET = struct.Struct("<I")

HEADER = _HEADER.pack(_SIGNATURE, FORMAT, ARGUMENT_LAYOUT, SETTLE.size)
HEADER_BYTES, BLOCK_BYTES, RECORD_BYTES = _HEADER.size, _BLOCK.size, _RECORD.size


@dataclass(frozen=True, slots=True)
class Record:
    """One settlement: `answer` is what the counters said (empty: nothing yet), at `ms`.

    `arguments` are those of `settle` as they go over the wire. `offset` is its place in the file.
    """

    offset: int
    ms: int
    spooled: bool
    answer: bytes
    arguments: bytes


@dataclass(slots=True)
class Contents:
    """What a file holds. `waiting` maps spooled records without an answer to their bytes."""

    understood: bool = True
    newest_ms: int = 0
    damaged_blocks: int = 0
    torn_bytes: int = 0
    waiting: dict[int, int] = field(default_factory=dict)


def block(kind: int, ms: int, payload: bytes) -> bytes:
    """A block as it is written."""
    checksum = crc32(payload, crc32(_COVERED.pack(kind, len(payload), ms)))
    return _BLOCK.pack(MAGIC, kind, len(payload), checksum, ms) + payload


def records(of: Sequence[tuple[bytes, bytes]]) -> bytes:
    """(answer, arguments) pairs as the payload of a block."""
    parts: list[bytes] = []
    for answer, arguments in of:
        parts += (_RECORD.pack(len(answer), len(arguments)), answer, arguments)
    return b"".join(parts)


def offsets(of: Sequence[int]) -> bytes:
    """Offsets of records that are done as the payload of a block."""
    return b"".join(map(_OFFSET.pack, of))


def read(data: bytes) -> Contents:
    """What a file holds; a torn end is counted in bytes, damage before it in blocks."""
    contents = Contents()
    if not data.startswith(HEADER):
        # A file that was never begun holds nothing; one of another format holds what we cannot read.
        contents.understood = HEADER.startswith(data)
        return contents
    for kind, ms, start, end in _blocks(data, contents):
        contents.newest_ms = max(contents.newest_ms, ms)
        if kind == DONE:
            for (offset,) in _OFFSET.iter_unpack(data[start:end]):
                contents.waiting.pop(offset, None)
        elif kind == SPOOLED:
            for record in _records(data, kind, ms, start, end):
                contents.waiting[record.offset] = RECORD_BYTES + len(record.arguments)
    return contents


def acknowledged(data: bytes) -> Iterator[Record]:
    """The records of a file that the counters have answered, in order."""
    if not data.startswith(HEADER):
        return
    for kind, ms, start, end in _blocks(data, Contents()):
        if kind == ACKNOWLEDGED:
            yield from _records(data, kind, ms, start, end)


def record_at(offset: int, data: bytes) -> Record:
    """The spooled record whose bytes these are."""
    answer, length = _RECORD.unpack_from(data)
    body = data[RECORD_BYTES:]
    return Record(offset, 0, spooled=True, answer=body[:answer], arguments=body[answer : answer + length])


def _blocks(data: bytes, found: Contents) -> Iterator[tuple[int, int, int, int]]:
    """(kind, ms, start, end) of each sound block's payload; the rest is counted in `found`."""
    at = HEADER_BYTES
    while at < len(data):
        start = at + BLOCK_BYTES
        if start <= len(data):
            magic, kind, length, checksum, ms = _BLOCK.unpack_from(data, at)
            end = start + length
            if magic == MAGIC and end <= len(data):
                payload = memoryview(data)[start:end]
                if checksum == crc32(payload, crc32(_COVERED.pack(kind, length, ms))):
                    yield kind, ms, start, end
                    at = end
                    continue
        following = data.find(MAGIC, at + 1)
        if following < 0:
            found.torn_bytes = len(data) - at
            return
        found.damaged_blocks += 1
        at = following


def _records(data: bytes, kind: int, ms: int, start: int, end: int) -> Iterator[Record]:
    while start < end:
        answer, length = _RECORD.unpack_from(data, start)
        body = start + RECORD_BYTES
        middle, after = body + answer, body + answer + length
        yield Record(start, ms, kind == SPOOLED, data[body:middle], data[middle:after])
        start = after
