"""One file of the settlement log as bytes: how it is laid out, and what can be read back of it.

A file is a header and blocks; a block carries its length and checksum, so what a crash left of
the last one is recognised, and damage in the middle costs the damaged block alone. Pure: whoever
opens and locks files is in `segment_file.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

from gateway.counters.layouts.table import KEPT

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

HEADER = _HEADER.pack(_SIGNATURE, FORMAT, ARGUMENT_LAYOUT, KEPT.size)
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
    """The sound blocks of a file of `size` bytes, told from these piece by piece, front to back.

    What one piece leaves open is kept for the next: a block, or what says that it is one. Damage
    is counted in blocks, a torn end in bytes.
    """

    def __init__(self, size: int) -> None:
        self.understood = True
        self.damaged = self.torn_bytes = 0
        self._size = size
        self._kept = bytearray()
        self._place = 0
        self._searching = False

    def feed(self, piece: bytes) -> Iterator[Block]:
        """The blocks that are whole with this piece."""
        kept = self._kept
        kept += piece
        if not self.understood or (self._place == 0 and not self._begun()):
            return
        at, left = 0, self._size - self._place  # bytes of the file from where `kept` begins
        while at < len(kept):
            if self._searching:
                following = kept.find(MAGIC, at)
                if following < 0:
                    at = self._lose(at, len(kept) if len(kept) == left else len(kept) - len(MAGIC) + 1)
                    break
                self.damaged, self.torn_bytes, self._searching, at = self.damaged + 1, 0, False, following
            found = _block(kept, at, left)
            if found is None:
                break
            if isinstance(found, Block):
                yield found._replace(at=self._place + found.at)
                at = found.at + len(found.payload)
            else:
                self._searching, at = True, self._lose(at, at + 1)
        del kept[:at]
        self._place += at

    def _begun(self) -> bool:
        """Whether what follows can be told: the header has been read, and is ours."""
        kept = self._kept
        if len(kept) < min(HEADER_BYTES, self._size):
            return False
        # A file that was never begun holds nothing; one of another format holds what we cannot read.
        head = bytes(kept[:HEADER_BYTES])
        self.understood = HEADER.startswith(head)
        del kept[:HEADER_BYTES]
        self._place = len(head)
        return head == HEADER

    def _lose(self, at: int, until: int) -> int:
        """Pass over bytes that are in no block: torn, unless one follows."""
        self.torn_bytes += max(0, until - at)
        return max(at, until)


def read(pieces: Iterable[bytes], size: int) -> Contents:
    """What a file holds; a torn end is counted in bytes, damage before it in blocks."""
    contents, blocks = Contents(), Blocks(size)
    for piece in pieces:
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


def _block(data: bytearray, at: int, left: int) -> Block | bool | None:
    """The block that begins here, its payload's place that in `data`; None where more bytes may make one
    of it, of `left` that the file has from where `data` begins; False where nothing can.
    """
    start = at + BLOCK_BYTES
    if start > len(data):
        return None if start <= left else False
    magic, kind, length, checksum, ms = _BLOCK.unpack_from(data, at)
    end = start + length
    if magic != MAGIC or end > left:
        return False
    if end > len(data):
        return None
    payload = bytes(data[start:end])
    return checksum == _checksum(kind, ms, payload) and Block(kind, ms, start, payload)


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
