"""The files of one worker's settlement log: begun, bounded, taken over from others, dropped.

Space is bounded over what this worker wrote; what it adopted was bounded by its writer. A file
is dropped when nothing in it waits for the counters, the oldest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from gateway.counters.settlement_log.segment import BLOCK_BYTES, HEADER_BYTES
from gateway.counters.settlement_log.segment_file import SUFFIX, Segment, adopted, claim, create
from gateway.errors import StartError

# A log is this many files when it is full: what is dropped goes in such pieces.
FILES_MIN = 16


class LogFiles:
    """The files, oldest first. `keep_s` is how long what was acknowledged is kept. `clock` is monotonic.

    `dropped_early` counts what was not kept so long: `bytes_max` is too little for the calls there are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_s: float,
        bytes_max: int,
        clock: Callable[[], float],
        say: Callable[..., None],
    ) -> None:
        self.segments: list[Segment] = []
        self.damaged_blocks = self.dropped_early = 0
        self.left_behind = False
        self._directory, self._keep_s, self._bytes_max = directory, keep_s, bytes_max
        self._clock, self._say = clock, say
        self._current: Segment | None = None
        self._began = 0.0
        self._left_alone: set[Path] = set()

    def open(self) -> None:
        """Make the directory and a first file; StartError where that cannot be."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            raise StartError(
                f"the settlement log in {self._directory} cannot be written: {error.strerror}"
            ) from error

    @property
    def waiting(self) -> int:
        """Spooled records the counters have not acknowledged."""
        return sum(len(segment.waiting) for segment in self.segments)

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(segment.size for segment in self.segments)

    @property
    def empty(self) -> bool:
        """Whether there is no record in any file."""
        return all(segment.size <= HEADER_BYTES for segment in self.segments)

    def room_for(self, spooled: int, noted: int) -> tuple[Segment | None, bool]:
        """The file for so many bytes, and whether what was only noted has room in it too. OSError too."""
        if not spooled and not noted:
            return None, False
        segment = self.room(spooled + noted + 2 * BLOCK_BYTES)
        if segment is not None or not spooled:
            return segment, True
        return self.room(spooled + BLOCK_BYTES), False

    def room(self, needed: int) -> Segment | None:
        """The file that takes so many bytes; None where all there is must not be dropped. OSError too."""
        while sum(one.size for one in self.segments if not one.adopted) + needed > self._bytes_max:
            oldest = next((one for one in self.segments if _spare(one)), None)
            if oldest is None:
                return None
            self._drop_early(oldest)
        current = self._current
        if (
            current is None
            or (current.size > HEADER_BYTES and current.size + needed > self._bytes_max // FILES_MIN)
            or self._clock() - self._began > self._keep_s / FILES_MIN
        ):
            current = self._begin()
        return current

    def rotate(self) -> None:
        """Have the next record begin a new file, if there is any in this one."""
        if self._current is not None and self._current.size > HEADER_BYTES:
            self._current = None

    def expire(self) -> None:
        """Drop what is older than it has to be kept: the counters are known to have it."""
        oldest = self._clock() - self._keep_s
        for segment in [one for one in self.segments if _spare(one) and one.newest < oldest]:
            self.drop(segment)

    def drop(self, segment: Segment) -> None:
        """Remove a file nothing waits in."""
        assert not segment.waiting
        self.segments.remove(segment)
        if self._current is segment:
            self._current = None
        segment.remove()

    def _drop_early(self, segment: Segment) -> None:
        """Make room; say the first time that the log reaches back less far than it should."""
        age_s = self._clock() - segment.newest
        if age_s < self._keep_s and segment.notes:
            if not self.dropped_early:
                facts = {"kept_s": round(age_s, 1), "wanted_s": self._keep_s, "bytes_max": self._bytes_max}
                self._say("settlement log is too small: it drops the oldest early", **facts, level="warning")
            self.dropped_early += segment.notes
        self.drop(segment)

    async def adopt(self) -> list[Segment]:
        """Take over the files of workers that are gone."""
        mine = {segment.path for segment in self.segments} | self._left_alone
        found = []
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            descriptor = None if path in mine else claim(path)
            if descriptor is None:
                continue
            try:
                segment, contents = await asyncio.to_thread(adopted, path, descriptor, self._clock())
            except OSError as error:
                self._left_alone.add(path)
                self._say("settlement log cannot be read", file=path.name, error=str(error), level="error")
                continue
            facts = {"file": path.name, "waiting": len(segment.waiting), "torn_bytes": contents.torn_bytes}
            if not contents.understood:
                self._left_alone.add(path)
                segment.leave()
                self._say("settlement log of another version is left alone", **facts, level="error")
                continue
            self.damaged_blocks += contents.damaged_blocks
            level = "error" if contents.damaged_blocks else "info"
            self._say("settlement log adopted", **facts, damaged=contents.damaged_blocks, level=level)
            self.segments.insert(0, segment)
            found.append(segment)
        return found

    def close(self, *, needed: bool) -> None:
        """Let go of every file; what waits, was adopted or is `needed` stays for the next worker.

        `left_behind` says afterwards whether any does.
        """
        for segment in self.segments:
            if segment.waiting or segment.adopted or (needed and segment.size > HEADER_BYTES):
                segment.leave()
                self.left_behind = True
            else:
                segment.remove()
        self.segments.clear()

    def _begin(self) -> Segment:
        current = self._current
        if current is not None and current.size <= HEADER_BYTES:
            self._began = self._clock()
            return current
        segment = self._current = create(self._directory, self._clock())
        self._began = segment.newest
        self.segments.append(segment)
        return segment


def _spare(segment: Segment) -> bool:
    return not segment.adopted and not segment.waiting and segment.size > HEADER_BYTES
