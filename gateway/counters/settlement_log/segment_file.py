"""One open file of the settlement log: locked while its worker lives, so that others leave it alone.

Whoever gets the lock of a file that lies there owns what it holds.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from gateway.core.model import PARTITIONS
from gateway.counters.settlement_log.segment import HEADER, Contents, Record, read, record_at

SUFFIX = ".settlements"
# What is read in larger pieces, the C library keeps for each thread that read them.
PIECE_BYTES = 64 * 1024
_sync = getattr(os, "fdatasync", os.fsync)


@dataclass(slots=True, eq=False)
class Segment:
    """A file of the log. `waiting` maps spooled records without an answer to their bytes.

    `newest` is when it was last written to (the worker's monotonic clock), `adopted` says that
    another worker began it, `named` that its name is on the disk, `recovered` up to which epoch
    of each partition its records were sent again, `notes` how many acknowledged ones were written to it.
    """

    path: Path
    descriptor: int
    size: int
    newest: float
    adopted: bool = False
    named: bool = False
    notes: int = 0
    waiting: dict[int, int] = field(default_factory=dict)
    recovered: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    def write(self, at: int, data: bytes) -> None:
        """Write all of `data`; from a thread that may block."""
        while data:
            written = os.pwrite(self.descriptor, data, at)
            at, data = at + written, data[written:]

    def sync(self) -> None:
        """Have the disk keep what was written; from a thread that may block."""
        _sync(self.descriptor)
        if not self.named:
            _sync_directory(self.path.parent)
            self.named = True

    def reading(self) -> Reading:
        """What reads the file as far as it is written now."""
        return Reading(self.descriptor, self.size)

    def record(self, offset: int) -> Record:
        """One record that waits."""
        return record_at(offset, os.pread(self.descriptor, self.waiting[offset], offset))

    def remove(self) -> None:
        """Delete the file and let go of it."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def leave(self) -> None:
        """Let go of the file for whoever comes next."""
        os.close(self.descriptor)


class Reading:
    """The first `size` bytes of a file in pieces; the file may be dropped meanwhile."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._descriptor, self._at = os.dup(descriptor), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def piece(self) -> bytes:
        """The next bytes, `PIECE_BYTES` at most, none at the end; from a thread that may block."""
        piece = os.pread(self._descriptor, min(PIECE_BYTES, self.size - self._at), self._at)
        self._at += len(piece)
        return piece


def create(directory: Path, now: float) -> Segment:
    """A new file, locked before anybody can see it under its name."""
    name = f"{os.getpid()}-{uuid.uuid4().hex}"
    hidden = directory / f".{name}.new"
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, HEADER)
        path = directory / f"{name}{SUFFIX}"
        hidden.rename(path)
    except OSError:
        os.close(descriptor)
        hidden.unlink(missing_ok=True)
        raise
    return Segment(path, descriptor, len(HEADER), now)


def claim(path: Path) -> int | None:
    """The descriptor of a file whose worker is gone, locked; None where one has it or it is gone itself."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:  # else another was faster, and is done with it
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def adopted(path: Path, descriptor: int, now: float) -> tuple[Segment, Contents]:
    """A claimed file, and what it holds; from a thread that may block. Let go of where it cannot be read."""
    try:
        size = os.fstat(descriptor).st_size
        with Reading(descriptor, size) as reading:
            contents = read(iter(reading.piece, b""), size)
    except OSError:
        os.close(descriptor)
        raise
    segment = Segment(path, descriptor, size, now, adopted=True, named=True, waiting=contents.waiting)
    return segment, contents


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
