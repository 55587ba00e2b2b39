"""One file of the settlement log as bytes: how it is laid out, and what can be read back of it.

A file is a header and blocks; a block carries its length and checksum, so what a crash left of
the last one is recognised, and damage in the middle costs the damaged block alone. Pure: whoever
opens and locks files is in `segment_file.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple
from zlib import crc32

from gateway.counters.packing import SETTLE

FORMAT = 1
# Changed whenever the packed argument of `settle` is: records of another layout are not understood.
ARGUMENT_LAYOUT = 2
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
    return _BLOCK.pack(MAGIC, kind, len(payload), _checksum(kind, ms, payload), ms) + payload


def records(of: Sequence[tuple[bytes, bytes]]) -> bytes:
    """(answer, arguments) pairs as the payload of a block."""
    parts: list[bytes] = []
    for answer, arguments in of:
        parts += (_RECORD.pack(len(answer), len(arguments)), answer, arguments)
    return b"".join(parts)


def offsets(of: Sequence[int]) -> bytes:
    """Offsets of records that are done as the payload of a block."""
    return b"".join(map(_OFFSET.pack, of))


class Block(NamedTuple):
    """A sound block; `at` is the place of its payload in the file."""

    kind: int
    ms: int
    at: int
    payload: bytes


class Blocks:
    """The sound blocks of a file, told from its bytes piece by piece, front to back.

    What one piece leaves open is kept for the next: no more than a block, unless it is damaged.
    Damage is counted in blocks, a torn end in bytes.
    """

    def __init__(self) -> None:
        self.understood = True
        self.damaged = self.torn_bytes = 0
        self._rest = b""
        self._place = 0

    def feed(self, piece: bytes) -> Iterator[Block]:
        """The blocks that are whole with this piece; an empty one says that the file ends here."""
        data, ends, at = self._rest + piece, not piece, 0
        if self._place == 0 and (ends or len(data) >= HEADER_BYTES):
            # A file that was never begun holds nothing; one of another format holds what we cannot read.
            at = HEADER_BYTES if data.startswith(HEADER) else len(data)
            self.understood = at == HEADER_BYTES or HEADER.startswith(data)
        while self.understood and self._place + at >= HEADER_BYTES and at < len(data):
            if found := _sound(data, at):
                yield found._replace(at=self._place + found.at)
                at = found.at + len(found.payload)
            elif not ends and _is_open(data, at):
                break
            elif (following := data.find(MAGIC, at + 1)) >= 0:
                self.damaged += 1
                at = following
            else:
                self.torn_bytes = len(data) - at if ends else 0
                break
        self._rest = data[at:] if self.understood else b""
        self._place += at


def read(pieces: Iterable[bytes]) -> Contents:
    """What a file holds; a torn end is counted in bytes, damage before it in blocks."""
    contents, blocks = Contents(), Blocks()
    for piece in chain(pieces, (b"",)):
        for one in blocks.feed(piece):
            contents.newest_ms = max(contents.newest_ms, one.ms)
            if one.kind == DONE:
                for (offset,) in _OFFSET.iter_unpack(one.payload):
                    contents.waiting.pop(offset, None)
            elif one.kind == SPOOLED:
                for record in _records(one):
                    contents.waiting[record.offset] = RECORD_BYTES + len(record.arguments)
    contents.understood = blocks.understood
    contents.damaged_blocks, contents.torn_bytes = blocks.damaged, blocks.torn_bytes
    return contents


def acknowledged(of: Block) -> Iterator[Record]:
    """The records of a block that the counters have answered, in order."""
    return _records(of) if of.kind == ACKNOWLEDGED else iter(())


def record_at(offset: int, data: bytes) -> Record:
    """The spooled record whose bytes these are."""
    answer, length = _RECORD.unpack_from(data)
    body = data[RECORD_BYTES:]
    return Record(offset, 0, spooled=True, answer=body[:answer], arguments=body[answer : answer + length])


def _sound(data: bytes, at: int) -> Block | None:
    """The block that begins here, if it is whole and undamaged; `at` is its payload's place in `data`."""
    start = at + BLOCK_BYTES
    if start > len(data):
        return None
    magic, kind, length, checksum, ms = _BLOCK.unpack_from(data, at)
    if magic != MAGIC or start + length > len(data):
        return None
    payload = data[start : start + length]
    return Block(kind, ms, start, payload) if checksum == _checksum(kind, ms, payload) else None


def _is_open(data: bytes, at: int) -> bool:
    """Whether more bytes may make a sound block of what begins here."""
    if len(data) - at < BLOCK_BYTES:
        return True
    magic, _, length, *_ = _BLOCK.unpack_from(data, at)
    return bool(magic == MAGIC) and at + BLOCK_BYTES + length > len(data)


def _checksum(kind: int, ms: int, payload: bytes) -> int:
    return crc32(payload, crc32(_COVERED.pack(kind, len(payload), ms)))


def _records(of: Block) -> Iterator[Record]:
    data, start = of.payload, 0
    while start < len(data):
        answer, length = _RECORD.unpack_from(data, start)
        body = start + RECORD_BYTES
        middle, after = body + answer, body + answer + length
        yield Record(of.at + start, of.ms, of.kind == SPOOLED, data[body:middle], data[middle:after])
        start = after
