"""The settlement log of a worker: its settlements and jobs, in bounded files that are synced to its disk.

Settlements that Redis acknowledged are noted, in case Redis loses its last second. Those that Redis did not
acknowledge are spooled: once on the disk they count as settled, and wait there until Redis has them. The size
of the worker's own files is bounded; adopted files were bounded by their writer. When space is short,
acknowledged records are dropped, the oldest file first, but spooled ones never: in a full log a settlement
fails. Only the log's own thread writes, one batch at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple
from zlib import crc32

from gateway.core.layout import EARLIER, FIRST, LAYOUT
from gateway.core.model import PARTITIONS
from gateway.core.wait import Wait
from gateway.counters.layouts.packing import KEPT
from gateway.errors import CountersUnavailable, StartError

# One file of the settlement log: its format, and its life on the disk.
#
# A file has a header and blocks. A block has its length and checksum, so that a torn last block is
# recognised, and damage in the middle costs only the damaged block. A file is locked while its worker lives;
# the next process that locks it owns its contents. No other code writes to its attributes.

FORMAT = 1
ACKNOWLEDGED, SPOOLED, DONE = 1, 2, 3
# Kinds of records other than settlements: jobs that Redis did not take, releases of holds, deletions of
# callers' holds. A version that does not know a kind skips such blocks.
JOB, RELEASE, DELETION = 4, 5, 6
_WAITING = (SPOOLED, RELEASE, JOB, DELETION)
# Holds by the API as a worker knows them, in case Redis loses them: kept for a time, as acknowledged records.
HELD = 7
# Kinds whose records are no arguments of `settle`.
OTHERS = frozenset({JOB, DELETION})
NO_KINDS: Final[Mapping[int, int]] = MappingProxyType({})

_HEADER = struct.Struct("<8sHHH2x")  # signature, format, layout of records (1: without a number), bytes
# No text of a caller contains these bytes: they are not UTF-8.
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
# Reading a file pauses for other tasks after this many bytes.
PIECE_BYTES = 64 * 1024


class Record(NamedTuple):
    """One settlement: its offset, Redis' answer (empty: none yet), the arguments of `settle`."""

    offset: int
    answer: bytes
    arguments: bytes


class Block(NamedTuple):
    """A valid block; `at` is the offset of its payload in the file."""

    kind: int
    ms: int
    at: int
    payload: bytes


def block(kind: int, ms: int, payload: bytes) -> bytes:
    """Return an encoded block; `ms` is the time of writing."""
    return _BLOCK.pack(MAGIC, kind, len(payload), _checksum(kind, ms, payload), ms) + payload


def records(of: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return (answer, arguments) pairs encoded as the payload of a block."""
    parts: list[bytes] = []
    for answer, arguments in of:
        parts += (_RECORD.pack(len(answer), len(arguments)), answer, arguments)
    return b"".join(parts)


def records_in(of: Block) -> Iterator[Record]:
    """Yield the records of a block, in order."""
    data, at = of.payload, 0
    while at < len(data):
        answer, length = _RECORD.unpack_from(data, at)
        middle = at + RECORD_BYTES + answer
        yield Record(of.at + at, data[at + RECORD_BYTES : middle], data[middle : middle + length])
        at = middle + length


def offsets(of: Sequence[int]) -> bytes:
    """Return the offsets of finished records, encoded as the payload of a block."""
    return b"".join(map(_OFFSET.pack, of))


def _checksum(kind: int, ms: int, payload: bytes) -> int:
    return crc32(payload, crc32(_COVERED.pack(kind, len(payload), ms)))


class SegmentReader:
    """Reads the valid blocks in the first `size` bytes of a file, in order; the file may be removed
    meanwhile.

    Damage is counted in blocks, a torn end in bytes. To be used in a thread that may block.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.understood = True
        self.damaged_blocks = self.torn_bytes = 0
        self.kinds: dict[int, int] = {}
        self._descriptor = os.dup(descriptor)
        self._size = min(size, os.fstat(descriptor).st_size)  # a disk that was full has less
        self._blocks = self._sound()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def piece(self, bytes_max: int = PIECE_BYTES) -> list[Block]:
        """Return the next blocks, of about `bytes_max` bytes; [] at the end."""
        taken: list[Block] = []
        size = 0
        while size < bytes_max and (one := next(self._blocks, None)) is not None:
            taken.append(one)
            size += BLOCK_BYTES + len(one.payload)
        return taken

    def waiting(self) -> dict[int, int]:
        """Read the whole file; return the bytes of records without Redis' answer, by offset.

        The attribute `kinds` gets the kinds of those that are no settlements.
        """
        counts: dict[int, int] = {}
        for one in self._blocks:
            if one.kind == DONE:
                for (offset,) in _OFFSET.iter_unpack(one.payload):
                    counts.pop(offset, None)
            elif one.kind in _WAITING:
                for record in records_in(one):
                    counts[record.offset] = RECORD_BYTES + len(record.arguments)
                    if one.kind != SPOOLED:
                        self.kinds[record.offset] = one.kind
        return counts

    def _sound(self) -> Iterator[Block]:
        # An empty file has no records; a file of an unknown format or layout cannot be read.
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
        """Return the block at an offset; None if there is no valid one."""
        start = at + BLOCK_BYTES
        if start > self._size:
            return None
        magic, kind, length, checksum, ms = _BLOCK.unpack(os.pread(self._descriptor, BLOCK_BYTES, at))
        if magic != MAGIC or start + length > self._size:
            return None
        payload = os.pread(self._descriptor, length, start)
        return Block(kind, ms, start, payload) if checksum == _checksum(kind, ms, payload) else None

    def _magic(self, at: int) -> int:
        """Return the offset of the next block signature, or of the end."""
        while at < self._size:
            piece = os.pread(self._descriptor, min(PIECE_BYTES, self._size - at), at)
            place = piece.find(MAGIC)
            if place >= 0:
                return at + place
            at += max(1, len(piece) - len(MAGIC) + 1)
        return self._size


@dataclass(slots=True, eq=False)
class LogSegment:
    """An open file of the log. `waiting` has the bytes of records without an answer, by offset.

    `kinds` are the kinds of those that are no settlements. `began` and `newest` are the times of the first
    and the last write (the worker's monotonic clock). `adopted` is whether another worker began the file,
    `named` whether its name is synced, and `notes` the number of acknowledged records.
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
    kinds: dict[int, int] = field(default_factory=dict)
    _sent_again: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    @property
    def empty(self) -> bool:
        return self.size <= HEADER_BYTES

    @property
    def spare(self) -> bool:
        """Whether this worker may drop the file for room: it is its own, with only acknowledged records."""
        return not (self.adopted or self.waiting or self.empty)

    def place(self, size: int, now: float, notes: int = 0) -> int:
        """Reserve `size` bytes, with `notes` acknowledged records, for the next write; return the offset."""
        at = self.size
        if self.empty:
            self.began = now
        self.size, self.newest, self.notes = at + size, now, self.notes + notes
        return at

    def write(self, at: int, data: bytes) -> None:
        """Write all of `data` at an offset of the file. Must run in a thread that may block."""
        while data:
            written = os.pwrite(self.descriptor, data, at)
            at, data = at + written, data[written:]

    def sync(self) -> None:
        """Sync the file to disk, and its directory the first time. Must run in a thread that may block."""
        getattr(os, "fdatasync", os.fsync)(self.descriptor)
        if not self.named:
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            self.named = True

    def keep(self, spooled: Mapping[int, int], kinds: Mapping[int, int] = NO_KINDS) -> None:
        """Add records that are on the disk and wait for Redis."""
        self.waiting.update(spooled)
        self.kinds.update(kinds)

    def done(self, offset: int) -> None:
        """Remove a waiting record, because Redis has it."""
        del self.waiting[offset]
        self.kinds.pop(offset, None)

    def record(self, offset: int) -> Record:
        data = os.pread(self.descriptor, self.waiting[offset], offset)
        return next(records_in(Block(SPOOLED, 0, offset, data)))

    def reading(self) -> SegmentReader:
        """Return a reader of the file up to its present size."""
        return SegmentReader(self.descriptor, self.size)

    def sent_again(self, epochs: Sequence[int], failed: Collection[int]) -> None:
        """Note that this file's records were sent again in these epochs, except of `failed` partitions."""
        for partition, epoch in enumerate(epochs):
            if partition not in failed:
                self._sent_again[partition] = max(epoch, self._sent_again[partition])

    def may_be_forgotten(self, partition: int, epoch: int, present: int) -> bool:
        """Return whether Redis may have lost a record acknowledged in `epoch`: the `present` epoch is later.

        False if the file's records were already sent again in a later epoch.
        """
        return self._sent_again[partition] <= epoch < present

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def leave(self) -> None:
        """Close the file, and leave it to the next worker."""
        os.close(self.descriptor)


def create(directory: Path, now: float, layout: int = LAYOUT) -> LogSegment:
    """Return a new file for records of a layout; it is locked before it gets its visible name."""
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
    return LogSegment(path, descriptor, HEADER_BYTES, now)


def adopt(path: Path, now: float) -> tuple[LogSegment, SegmentReader] | None:
    """Lock and read a file whose worker is gone; None if another process has it. The call may block."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # another process was faster
        return None
    adopted = None
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = os.fstat(descriptor)
            if about.st_nlink > 0:  # otherwise another process was faster, and has removed it
                with closing(SegmentReader(descriptor, about.st_size)) as reading:
                    waiting = reading.waiting()
                log_segment = LogSegment(
                    path, descriptor, about.st_size, now, named=True, adopted=True, waiting=waiting,
                    kinds={at: kind for at, kind in reading.kinds.items() if at in waiting},
                )  # fmt: skip
                adopted = log_segment, reading
    finally:
        if adopted is None:
            os.close(descriptor)
    return adopted


# Bounds of a settlement log and of sending it again: seconds (`_s`), bytes and numbers.
@dataclass(frozen=True, slots=True)
class LogLimits:
    """The bounds, with the default values of a worker."""

    write_s: float = 0.05
    spool_s_max: float = 2.0
    # After the data plane's grace period and its last calls: a worker ends within 25 seconds.
    close_s_max: float = 1.0
    # A Redis that syncs its append-only file each second keeps records older than this.
    at_risk_s: float = 2.0
    notes_max: int = 50_000
    spools_max: int = 50_000
    retry_s: float = 0.2
    # A running call may have lost its hold: until it settles, others could be admitted on what it uses. A
    # call that runs longer is not waited for.
    calls_s_max: float = 2.0
    # The keeper verifies partitions one after another: those after the first are collected for this time.
    together_s_max: float = 1.0
    batch_s: float = 0.02
    piece_bytes: int = PIECE_BYTES


BOUNDS = LogLimits()


SYNC_S = 1.0
# The number of files of a full log: records are dropped by the file.
FILES_MIN = 16


@dataclass(slots=True)
class LogCounts:
    """Counts since the log was opened.

    `refused`: settlements stored nowhere. `unlogged`: settlements that were acknowledged, but are not in the
    log in case Redis loses them. `dropped_early`: records not kept for the whole time, because `bytes_max` is
    too small.
    """

    spooled: int = 0
    refused: int = 0
    unlogged: int = 0
    dropped_early: int = 0


@dataclass(slots=True)
class LogWrite:
    """One write: the bytes by file and offset, the records `kept` by it, and their waiters."""

    writes: list[tuple[LogSegment, int, bytes]] = field(default_factory=list)
    synced: list[LogSegment] = field(default_factory=list)
    kept: LogSegment | None = None
    spooled: dict[int, int] = field(default_factory=dict)
    kinds: dict[int, int] = field(default_factory=dict)
    waits: list[Wait[None]] = field(default_factory=list)
    notes: int = 0


class SettlementLog:
    """The log of one worker: `segments` are its files, oldest first. StartError if it cannot write.

    Acknowledged records are kept for `keep_s` seconds. `clock` is monotonic; `wall` returns seconds since the
    epoch. Once closed, `left_behind` is whether any file is left for the next worker. Records have the
    `layout` of the counters, because a downgraded version may have to send them.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_s: float,
        bytes_max: int,
        clock: Callable[[], float],
        wall: Callable[[], float],
        say: Callable[..., None],
        bounds: LogLimits = BOUNDS,
    ) -> None:
        self.segments: list[LogSegment] = []
        self.counts = LogCounts()
        self.woken = asyncio.Event()
        self.left_behind = False
        self.layout = EARLIER
        self.keep_s, self._directory, self._bytes_max = keep_s, directory, bytes_max
        self._clock, self._wall, self._say, self._bounds = clock, wall, say, bounds
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "settlement-log")
        self._current: LogSegment | None = None
        self._left_alone: set[Path] = set()
        self._notes: list[tuple[bytes, bytes]] = []
        self._held: list[tuple[bytes, bytes]] = []
        self._spools: list[tuple[int, bytes, Wait[None]]] = []
        self._done: dict[LogSegment, list[int]] = {}
        self._unsynced: set[LogSegment] = set()
        self._synced_at = clock()
        self._noted_at = -self._bounds.at_risk_s
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._is_full = self._is_failing = self._closed = False
        self._turned, self._emptied = asyncio.Event(), asyncio.Event()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            raise StartError(
                f"the settlement log in {directory} cannot be written: {error.strerror}"
            ) from error

    @property
    def waiting(self) -> int:
        """The number of settlements and jobs that Redis has not acknowledged."""
        return len(self._spools) + sum(len(segment.waiting) for segment in self.segments)

    @property
    def size(self) -> int:
        """The number of bytes in all files."""
        return sum(segment.size for segment in self.segments)

    def note(self, arguments: bytes, answer: bytes) -> None:
        """Store an acknowledged settlement: written within `write_s`, synced within `SYNC_S`."""
        if len(self._notes) >= self._bounds.notes_max:
            self.counts.unlogged += 1
            return
        self._notes.append((answer, arguments))
        self._soon()

    def note_hold(self, record: bytes) -> None:
        """Store what this worker knows of a hold by the API, as `note` stores a settlement."""
        if len(self._held) >= self._bounds.notes_max:
            self.counts.unlogged += 1
            return
        self._held.append((b"", record))
        self._soon()

    def spool(self, arguments: bytes, kind: int = SPOOLED) -> Wait[None]:
        """Store a record for Redis; the waiter is set once the record is synced to the disk.

        It fails with CountersUnavailable if there is no room, or after `spool_s_max` seconds.
        """
        wait: Wait[None] = Wait()
        if len(self._spools) >= self._bounds.spools_max:
            self._refuse([wait])
            return wait
        self._spools.append((kind, arguments, wait))
        if len(self._spools) == 1:
            if self._writing is None:
                self._loop.call_soon(self._turn)
            else:
                self._loop.call_later(self._bounds.spool_s_max, self._give_up_behind, self._writing)
        return wait

    def done(self, segment: LogSegment, offset: int) -> None:
        """Note that Redis has a spooled record now."""
        segment.done(offset)
        self._done.setdefault(segment, []).append(offset)
        if not self.waiting:
            self._emptied.set()
        self._soon()

    def take_up(self, layout: int) -> None:
        """Write new records in this layout."""
        if layout != self.layout:
            self.layout = layout
            if self._current is not None and self._current.empty:  # its header names its layout
                self._drop(self._current)
            self.rotate()

    def rotate(self) -> None:
        """Begin a new file with the next record, unless the present one is empty."""
        if self._current is not None and not self._current.empty:
            self._current = None

    def expire(self, sure_s: float) -> None:
        """Remove files older than the retention time. The caller has checked that Redis lost nothing.

        Adopted files younger than `sure_s` seconds stay, as Redis may still lose their records. While a write
        is in progress nothing is removed; the next call does it.
        """
        now = self._clock()
        for segment in list(self.segments) if self._writing is None else ():
            adopted = segment.adopted and not segment.waiting and segment.newest <= now - sure_s
            if adopted or (segment.spare and segment.newest < now - self.keep_s):
                self._drop(segment)

    def others(self) -> list[Path]:
        """Return the files of other workers, alive or gone."""
        ours = {segment.path for segment in self.segments}
        return sorted(set(self._directory.glob(f"*{SUFFIX}")) - ours - self._left_alone)

    async def adopt(self) -> list[LogSegment]:
        """Adopt the files of workers that are gone; return them."""
        found = []
        for path in self.others():
            try:
                adopted = await asyncio.to_thread(adopt, path, self._clock())
            except OSError as error:
                self._left_alone.add(path)
                self._say("settlement log cannot be read", file=path.name, error=str(error), level="error")
                continue
            if adopted is None:
                continue
            segment, read = adopted
            facts = {"file": path.name, "waiting": len(segment.waiting), "torn_bytes": read.torn_bytes}
            if not read.understood:
                self._left_alone.add(path)
                segment.leave()
                self._say("settlement log of another version is left alone", **facts, level="error")
                continue
            level = "error" if read.damaged_blocks else "info"
            self._say("settlement log adopted", **facts, damaged=read.damaged_blocks, level=level)
            self.segments.insert(0, segment)
            found.append(segment)
        return found

    async def written(self) -> None:
        """Wait until all records noted so far are written."""
        for _ in range(2):  # one write in progress, and one for the rest
            if self._notes or self._held or self._writing is not None:
                self._turned.clear()
                await self._turned.wait()

    async def sent(self, until: float) -> None:
        """Wait until Redis has all spooled records, at most until a time of `clock`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock())):
                while self.waiting:
                    self._emptied.clear()
                    await self._emptied.wait()

    async def close(self) -> bool:
        """Write all records; close files that may still be needed, and remove the others.

        False if the disk takes longer than `close_s_max`: its thread still has the files, and they remain.
        """
        if self._closed:
            return True
        try:
            async with asyncio.timeout(self._bounds.close_s_max):
                for _ in range(2):
                    self._synced_at = self._clock() - SYNC_S
                    self._turn()
                    while self._writing is not None:
                        await asyncio.wait([self._writing])
                        await asyncio.sleep(0)
                await self._loop.run_in_executor(self._executor, self._let_go)
        except TimeoutError:
            self._say("settlement log was not closed: its disk hangs", waiting=self.waiting, level="error")
            return False
        finally:
            if self._timer is not None:
                self._timer.cancel()
        self._executor.shutdown()
        self._closed = True
        return True

    def _let_go(self) -> None:
        """Close files with records that wait, were adopted, or may be lost by Redis; remove the others."""
        needed = self._clock() - self._noted_at < self._bounds.at_risk_s
        for segment in self.segments:
            if segment.waiting or segment.adopted or (needed and not segment.empty):
                segment.leave()
                self.left_behind = True
            else:
                segment.remove()
        self.segments.clear()

    # --- one turn: everything there is in one write ---------------------------------------

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._bounds.write_s, self._turn)

    def _turn(self) -> None:
        """Start a write of all pending records; if one is in progress, its end starts the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            return
        turn = self._gathered()
        if not turn.writes and not turn.synced:
            self._turned.set()
            if self._unsynced:
                self._soon()
            return
        self._writing = self._loop.run_in_executor(self._executor, write, turn)
        bound = self._loop.call_later(self._bounds.spool_s_max, give_up, turn.waits) if turn.waits else None
        self._writing.add_done_callback(lambda written: self._written(turn, written, bound))

    def _gathered(self) -> LogWrite:
        """Collect all pending records into one write, each with its file and offset."""
        turn, now, ms = LogWrite(), self._clock(), int(self._wall() * 1000)
        notes, self._notes = self._notes, []
        spools, self._spools = self._spools, []
        held, self._held = self._held, []
        if self.layout != LAYOUT:
            notes = [(answer, KEPT.earlier(arguments)) for answer, arguments in notes]
            spools = [
                (kind, arguments if kind in OTHERS else KEPT.earlier(arguments), wait)
                for kind, arguments, wait in spools
            ]
        done, self._done = self._done, {}
        kept = {kind: [record for kind_, record, _ in spools if kind_ == kind] for kind in _WAITING}
        spooled = {kind: records([(b"", record) for record in some]) for kind, some in kept.items() if some}
        noted = [
            (kind, records(some), len(some)) for kind, some in ((ACKNOWLEDGED, notes), (HELD, held)) if some
        ]
        size, turn.notes = sum(BLOCK_BYTES + len(spool) for spool in spooled.values()), len(notes) + len(held)
        wanted = size + sum(BLOCK_BYTES + len(payload) for _, payload, _ in noted)
        segment = self._room(wanted) if noted or spools else None
        if segment is None and noted:
            self.counts.unlogged += turn.notes
            noted, turn.notes, segment = [], 0, self._room(size) if spools else None
        if segment is None:
            self._refuse([wait for *_, wait in spools])
        elif spools:
            turn.kept, turn.waits = segment, [wait for *_, wait in spools]
            for kind, payload in spooled.items():
                at = self._place(turn, segment, block(kind, ms, payload)) + BLOCK_BYTES
                for arguments in kept[kind]:
                    turn.spooled[at] = RECORD_BYTES + len(arguments)
                    if kind != SPOOLED:
                        turn.kinds[at] = kind
                    at += turn.spooled[at]
        for kind, payload, number in noted:
            assert segment is not None
            self._place(turn, segment, block(kind, ms, payload), number)
            self._noted_at = now
        for marked, places in done.items():
            if marked in self.segments:  # making room may have removed it
                self._place(turn, marked, block(DONE, ms, offsets(places)))
        if self._unsynced and (turn.waits or now - self._synced_at >= SYNC_S):
            turn.synced, self._synced_at = list(self._unsynced), now
            self._unsynced.clear()
        return turn

    def _place(self, turn: LogWrite, segment: LogSegment, data: bytes, notes: int = 0) -> int:
        """Add a block to a write; return its offset in the file."""
        at = segment.place(len(data), self._clock(), notes)
        turn.writes.append((segment, at, data))
        self._unsynced.add(segment)
        return at

    def _written(
        self, turn: LogWrite, written: asyncio.Future[None], bound: asyncio.TimerHandle | None
    ) -> None:
        self._writing = None
        self._turned.set()
        if bound is not None:
            bound.cancel()
        error = written.exception()
        if error is not None:
            # The end of these files counts as torn; the next record begins a new one.
            self.rotate()
            self.counts.unlogged += turn.notes
            self._failed(error)
            self._refuse(turn.waits)
        else:
            self._is_failing = False
        if error is None and turn.kept is not None:
            turn.kept.keep(turn.spooled, turn.kinds)
            self.counts.spooled += len(turn.spooled) - len(turn.kinds)
            self._is_full = False
            self.woken.set()
            for wait in turn.waits:
                wait.set(None)
        if self._spools:
            self._turn()
        elif self._notes or self._held or self._done or self._unsynced:
            self._soon()

    def _give_up_behind(self, writing: asyncio.Future[None]) -> None:
        """Fail all waiting records at intervals while the write `writing` hangs, even if it ends later."""
        if self._writing is writing:
            give_up([wait for *_, wait in self._spools])
            self._loop.call_later(
                self._bounds.spool_s_max, self._give_up_behind, writing
            )  # for later waiters

    def _refuse(self, waits: list[Wait[None]]) -> None:
        self.counts.refused += len(waits)
        if waits and not self._is_full:
            self._is_full = True
            self._say("settlement log takes nothing more: answers are cut", level="error")
        give_up(waits)

    def _failed(self, error: BaseException) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._say("settlement log cannot be written", error=str(error), level="error")

    # --- the files ------------------------------------------------------------------------

    def _room(self, size: int) -> LogSegment | None:
        """Return a file with room for `size` bytes and two more blocks, or None.

        Old files are dropped to make room; None if no more may be dropped, or no new file can be created.
        """
        needed, now = size + 2 * BLOCK_BYTES, self._clock()
        while (
            sum(segment.size for segment in self.segments if not segment.adopted) + needed > self._bytes_max
        ):
            oldest = next((segment for segment in self.segments if segment.spare), None)
            if oldest is None:
                return None
            self._drop_early(oldest, now)
        current = self._current
        if current is not None and (current.empty or self._goes_on(current, needed, now)):
            return current
        try:
            return self._begin()
        except OSError as error:
            self._failed(error)
            return None

    def _goes_on(self, segment: LogSegment, needed: int, now: float) -> bool:
        has_room = segment.size + needed <= self._bytes_max // FILES_MIN
        return has_room and now - segment.began <= self.keep_s / FILES_MIN

    def _begin(self) -> LogSegment:
        segment = self._current = create(self._directory, self._clock(), self.layout)
        self.segments.append(segment)
        return segment

    def _drop_early(self, segment: LogSegment, now: float) -> None:
        """Drop a file to make room; the first time, log that records are kept for too short a time."""
        age_s = now - segment.newest
        if age_s < self.keep_s and segment.notes:
            if not self.counts.dropped_early:
                facts = {"kept_s": round(age_s, 1), "wanted_s": self.keep_s, "bytes_max": self._bytes_max}
                self._say("settlement log is too small: it drops the oldest early", **facts, level="warning")
            self.counts.dropped_early += segment.notes
        self._drop(segment)

    def _drop(self, segment: LogSegment) -> None:
        self.segments.remove(segment)
        self._unsynced.discard(segment)
        if self._current is segment:
            self._current = None
        segment.remove()


def write(turn: LogWrite) -> None:
    """Write the blocks of a batch, then sync its files; runs in the log's thread."""
    for segment, at, data in turn.writes:
        segment.write(at, data)
    for segment in turn.synced:
        segment.sync()


def give_up(waits: Iterable[Wait[None]]) -> None:
    """Fail waiters, because their records are not safely stored in time."""
    for wait in waits:
        wait.fail(CountersUnavailable())
