"""One file of the settlement log: how its bytes are laid out, and its life on the disk.

A file is a header and blocks; a block carries its length and checksum, so what a crash left of the last
one is recognised, and damage in the middle costs the damaged block alone. A file is locked while its worker
lives: whoever gets the lock of one that lies there owns what it holds. Nobody else writes to its attributes.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from gateway.core.layout import EARLIER, FIRST, LAYOUT
from gateway.core.model import PARTITIONS
from gateway.counters.layouts.table import KEPT

FORMAT = 1
ACKNOWLEDGED, SPOOLED, DONE = 1, 2, 3

_HEADER = struct.Struct("<8sHHH2x")  # signature, format, layout of records (1: without a number), bytes
# No text of a caller's contains these bytes: they are not UTF-8.
MAGIC = b"\xffTK\xfe"
_BLOCK = struct.Struct("<4sBIIq")
_COVERED = struct.Struct("<BIq")
_RECORD, _OFFSET = struct.Struct("<HI"), struct.Struct("<I")

_SIZES = {LAYOUT: KEPT.size, EARLIER: len(KEPT.earlier(bytes([LAYOUT]).ljust(KEPT.size, b"\0")))}
HEADERS = {layout: _HEADER.pack(b"TKSETTLE", FORMAT, layout, size) for layout, size in _SIZES.items()}
HEADER = HEADERS[LAYOUT]
_KNOWN = tuple(_HEADER.pack(b"TKSETTLE", FORMAT, one, 0)[:-4] for one in (1, *range(FIRST, LAYOUT + 1)))
HEADER_BYTES, BLOCK_BYTES, RECORD_BYTES = _HEADER.size, _BLOCK.size, _RECORD.size
SUFFIX = ".settlements"
# Others have their turn after so much of a file.
PIECE_BYTES = 64 * 1024


class Record(NamedTuple):
    """One settlement: its place, what the counters said (empty: nothing yet), the arguments of `settle`."""

    offset: int
    answer: bytes
    arguments: bytes


class Block(NamedTuple):
    """A sound block; `at` is the place of its payload in the file."""

    kind: int
    ms: int
    at: int
    payload: bytes


def block(kind: int, ms: int, payload: bytes) -> bytes:
    """A block as it is written."""
    return _BLOCK.pack(MAGIC, kind, len(payload), _checksum(kind, ms, payload), ms) + payload


def records(of: Sequence[tuple[bytes, bytes]]) -> bytes:
    """(answer, arguments) pairs as the payload of a block."""
    parts: list[bytes] = []
    for answer, arguments in of:
        parts += (_RECORD.pack(len(answer), len(arguments)), answer, arguments)
    return b"".join(parts)


def records_in(of: Block) -> Iterator[Record]:
    """The records of a block, in order."""
    data, at = of.payload, 0
    while at < len(data):
        answer, length = _RECORD.unpack_from(data, at)
        middle = at + RECORD_BYTES + answer
        yield Record(of.at + at, data[at + RECORD_BYTES : middle], data[middle : middle + length])
        at = middle + length


def offsets(of: Sequence[int]) -> bytes:
    """Offsets of records that are done as the payload of a block."""
    return b"".join(map(_OFFSET.pack, of))


def _checksum(kind: int, ms: int, payload: bytes) -> int:
    return crc32(payload, crc32(_COVERED.pack(kind, len(payload), ms)))


class Reading:
    """The sound blocks of the first `size` bytes of a file, front to back; it may be dropped meanwhile.

    Damage is counted in blocks, a torn end in bytes. All of it from a thread that may block.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.understood = True
        self.damaged_blocks = self.torn_bytes = 0
        self._descriptor = os.dup(descriptor)
        self._size = min(size, os.fstat(descriptor).st_size)  # a disk that was full has less
        self._blocks = self._sound()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def piece(self, bytes_max: int = PIECE_BYTES) -> list[Block]:
        """The next blocks, so many bytes of them or a little more; none at the end."""
        taken: list[Block] = []
        size = 0
        while size < bytes_max and (one := next(self._blocks, None)) is not None:
            taken.append(one)
            size += BLOCK_BYTES + len(one.payload)
        return taken

    def waiting(self) -> dict[int, int]:
        """Read it all: the spooled records without an answer, and their bytes."""
        found: dict[int, int] = {}
        for one in self._blocks:
            if one.kind == DONE:
                for (offset,) in _OFFSET.iter_unpack(one.payload):
                    found.pop(offset, None)
            elif one.kind == SPOOLED:
                for record in records_in(one):
                    found[record.offset] = RECORD_BYTES + len(record.arguments)
        return found

    def _sound(self) -> Iterator[Block]:
        # A file that was never begun holds nothing; one of a format or layout not known what we cannot read.
        head = os.pread(self._descriptor, HEADER_BYTES, 0)
        self.understood = HEADER.startswith(head) or head.startswith(_KNOWN)
        at = HEADER_BYTES
        while self.understood and at < self._size:
            found = self._block(at)
            if found is not None:
                yield found
                at = found.at + len(found.payload)
                continue
            lost, at = at, self._magic(at + 1)
            if at < self._size:
                self.damaged_blocks += 1
            else:
                self.torn_bytes = self._size - lost

    def _block(self, at: int) -> Block | None:
        """The block that begins here; None where none does."""
        start = at + BLOCK_BYTES
        if start > self._size:
            return None
        magic, kind, length, checksum, ms = _BLOCK.unpack(os.pread(self._descriptor, BLOCK_BYTES, at))
        if magic != MAGIC or start + length > self._size:
            return None
        payload = os.pread(self._descriptor, length, start)
        return Block(kind, ms, start, payload) if checksum == _checksum(kind, ms, payload) else None

    def _magic(self, at: int) -> int:
        """Where what says that it is a block comes next; the end where nothing does."""
        while at < self._size:
            piece = os.pread(self._descriptor, min(PIECE_BYTES, self._size - at), at)
            found = piece.find(MAGIC)
            if found >= 0:
                return at + found
            at += max(1, len(piece) - len(MAGIC) + 1)
        return self._size


@dataclass(slots=True, eq=False)
class Segment:
    """An open file of the log. `waiting` maps spooled records without an answer to their bytes.

    `began` and `newest` are when it was first and last written to (the worker's monotonic clock), `adopted`
    says that another worker began it, `named` that its name is on the disk, `notes` how many acknowledged
    records were written to it.
    """

    path: Path
    descriptor: int
    size: int
    newest: float
    adopted: bool = False
    named: bool = False
    began: float = 0.0
    notes: int = 0
    waiting: dict[int, int] = field(default_factory=dict)
    _sent_again: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    @property
    def empty(self) -> bool:
        """Whether there is no record in it."""
        return self.size <= HEADER_BYTES

    @property
    def spare(self) -> bool:
        """Whether its own worker may drop it: it has nothing but what was acknowledged."""
        return not (self.adopted or self.waiting or self.empty)

    def place(self, size: int, now: float, notes: int = 0) -> int:
        """Where so many bytes go, which are written next; `notes` of their records were acknowledged."""
        at = self.size
        if self.empty:
            self.began = now
        self.size, self.newest, self.notes = at + size, now, self.notes + notes
        return at

    def write(self, at: int, data: bytes) -> None:
        """Write all of `data`; from a thread that may block."""
        while data:
            written = os.pwrite(self.descriptor, data, at)
            at, data = at + written, data[written:]

    def sync(self) -> None:
        """Have the disk keep what was written; from a thread that may block."""
        getattr(os, "fdatasync", os.fsync)(self.descriptor)
        if not self.named:
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            self.named = True

    def keep(self, spooled: Mapping[int, int]) -> None:
        """These records, which are on the disk for certain, wait for the counters."""
        self.waiting.update(spooled)

    def done(self, offset: int) -> None:
        """The counters have this record."""
        del self.waiting[offset]

    def record(self, offset: int) -> Record:
        """One record that waits."""
        data = os.pread(self.descriptor, self.waiting[offset], offset)
        return next(records_in(Block(SPOOLED, 0, offset, data)))

    def reading(self) -> Reading:
        """What reads the file as far as it is written now."""
        return Reading(self.descriptor, self.size)

    def sent_again(self, epochs: Sequence[int], failed: Collection[int]) -> None:
        """What is of earlier epochs was sent again, but for partitions where that failed."""
        for partition, epoch in enumerate(epochs):
            if partition not in failed:
                self._sent_again[partition] = max(epoch, self._sent_again[partition])

    def may_be_forgotten(self, partition: int, epoch: int, present: int) -> bool:
        """Whether what was answered under this epoch is of before the present one, and not sent again."""
        return self._sent_again[partition] <= epoch < present

    def remove(self) -> None:
        """Delete the file and let go of it."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def leave(self) -> None:
        """Let go of the file for whoever comes next."""
        os.close(self.descriptor)


def create(directory: Path, now: float, layout: int = LAYOUT) -> Segment:
    """A new file for records of a layout, locked before anybody can see it under its name."""
    name = f"{os.getpid()}-{uuid.uuid4().hex}"
    hidden = directory / f".{name}.new"
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, HEADERS[layout])
        path = directory / f"{name}{SUFFIX}"
        hidden.rename(path)
    except OSError:
        os.close(descriptor)
        hidden.unlink(missing_ok=True)
        raise
    return Segment(path, descriptor, HEADER_BYTES, now)


def adopt(path: Path, now: float) -> tuple[Segment, Reading] | None:
    """Take over a file whose worker is gone, and read it, where that may block; None where one has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # another was faster
        return None
    adopted = None
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = os.fstat(descriptor)
            if about.st_nlink > 0:  # else another was faster, and is done with it
                with closing(Reading(descriptor, about.st_size)) as reading:
                    waiting = reading.waiting()
                found = Segment(
                    path, descriptor, about.st_size, now, named=True, adopted=True, waiting=waiting
                )
                adopted = found, reading
    finally:
        if adopted is None:
            os.close(descriptor)
    return adopted
