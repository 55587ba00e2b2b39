"""Appends usage events to a file of this machine: one CloudEvent a line (NDJSON), in order, each once.

A killed keeper may leave half a line, or lines whose events are not recorded as sent. The next keeper cuts
off half a line, and treats events in the last lines as sent. If the file was moved away, as by logrotate, a
new one is created.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.features.usage_feed.events import (
    BATCH_EVENTS_MAX,
    BATCHES_AT_ONCE,
    ERROR_CHARS_MAX,
    FeedEvent,
    FeedResult,
    Pause,
)
from gateway.features.usage_feed.services import cloud_event
from gateway.files import require_regular

# Events of one write; then lines at the end that are searched for events already written.
WRITTEN_AT_ONCE: Final = BATCH_EVENTS_MAX * BATCHES_AT_ONCE
RECENT_MAX: Final = 5 * WRITTEN_AT_ONCE
# Bytes at the end of the file with so many lines.
TAIL_BYTES_MAX: Final = 8 * 1024 * 1024


class _Line(msgspec.Struct):
    id: str


class EventFile:
    """The file at `path`; `type_` is the CloudEvents type of its events."""

    def __init__(self, path: str, type_: str) -> None:
        self._path, self._type = path, type_
        self._recent: deque[str] = deque(maxlen=RECENT_MAX)
        # The file of the recent lines (device, inode), and its size after them.
        self._known: tuple[int, int, int] | None = None

    async def send(self, events: Sequence[FeedEvent]) -> FeedResult:
        """Write a batch to disk; return a pause if the file cannot be written."""
        try:
            await asyncio.to_thread(self._append, events)
        except OSError as error:
            return FeedResult(pause=Pause(f"{self._path}: {error.strerror or error}"[:ERROR_CHARS_MAX]))
        return FeedResult(taken={event.id for event in events})

    def _append(self, events: Sequence[FeedEvent]) -> None:
        """Append those events that the file's end does not have yet, and sync the file."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            require_regular(self._path)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two keepers of one machine
            status = os.fstat(file)
            if self._known != (status.st_dev, status.st_ino, status.st_size):
                self._read_end(file, status.st_size)
            written = set(self._recent)
            new = [event for event in events if event.name not in written]
            lines = b"".join(msgspec.json.encode(cloud_event(event, self._type)) + b"\n" for event in new)
            self._known = None  # until the write is complete
            at = os.lseek(file, 0, os.SEEK_END)
            while lines:
                lines = lines[os.write(file, lines) :]
            os.fsync(file)
            self._recent.extend(event.name for event in new)
            self._known = status.st_dev, status.st_ino, os.lseek(file, 0, os.SEEK_CUR) if new else at
        finally:
            os.close(file)

    def _read_end(self, file: int, size: int) -> None:
        """Read the ids of the last lines, and cut off an incomplete last line of a killed keeper."""
        begins = max(0, size - TAIL_BYTES_MAX)
        tail = os.pread(file, size - begins, begins)
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            os.ftruncate(file, begins + whole)
        self._recent.clear()
        for line in tail[:whole].split(b"\n")[1 if begins else 0 :]:
            if line:
                self._recent.append(_id_in(line))


def _id_in(line: bytes) -> str:
    """Return the id of an event in a line, empty if the line is no event."""
    try:
        return msgspec.json.decode(line, type=_Line).id
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
