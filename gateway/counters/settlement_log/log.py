"""The worker's own memory of what it settled: one bounded, fsynced log in files on its disk.

What the counters acknowledged is noted, for the case that they forget their last second. What they did not
acknowledge is spooled: once that is on the disk it is as good as settled, and it waits there until the
counters have it. Space is bounded over what this worker wrote; what it adopted was bounded by its writer.
Acknowledged records make room when space is short, the oldest file first; spooled ones are never dropped:
full means that a settlement fails. Only the log's own thread writes, a turn at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.layout import EARLIER, LAYOUT
from gateway.core.wait import Wait
from gateway.counters.layouts.table import KEPT
from gateway.counters.settlement_log import segment as file
from gateway.counters.settlement_log.bounds import BOUNDS, Bounds
from gateway.counters.settlement_log.segment import ACKNOWLEDGED, BLOCK_BYTES, DONE, SPOOLED, SUFFIX, Segment
from gateway.errors import CountersUnavailable, StartError

SYNC_S = 1.0
# A log is this many files when it is full: what is dropped goes in such pieces.
FILES_MIN = 16


@dataclass(slots=True)
class LogCounts:
    """What happened since the log was opened.

    `refused` settlements could be kept nowhere; `unlogged` ones were acknowledged, and nothing is here should
    the counters forget them; `dropped_early` were not kept as long as they should: `bytes_max` is too little.
    """

    spooled: int = 0
    refused: int = 0
    unlogged: int = 0
    dropped_early: int = 0


@dataclass(slots=True)
class Turn:
    """What one write takes along: bytes by file and place, what is `kept` after it, who waits for that."""

    writes: list[tuple[Segment, int, bytes]] = field(default_factory=list)
    synced: list[Segment] = field(default_factory=list)
    kept: Segment | None = None
    spooled: dict[int, int] = field(default_factory=dict)
    waits: list[Wait[None]] = field(default_factory=list)
    notes: int = 0


class SettlementLog:
    """The log of one worker: `segments` are its files, oldest first. StartError where it can keep nothing.

    What was acknowledged is kept for `keep_s`. `clock` is monotonic, `wall` tells seconds since the epoch.
    `left_behind` says, once it is closed, whether any file stays for the next worker. What is kept is of the
    `layout` that the counters are written in: a program that was taken back may have to send it.
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
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.segments: list[Segment] = []
        self.counts = LogCounts()
        self.woken = asyncio.Event()
        self.left_behind = False
        self.layout = EARLIER
        self._directory, self._keep_s, self._bytes_max = directory, keep_s, bytes_max
        self._clock, self._wall, self._say, self._bounds = clock, wall, say, bounds
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "settlement-log")
        self._current: Segment | None = None
        self._left_alone: set[Path] = set()
        self._notes: list[tuple[bytes, bytes]] = []
        self._spools: list[tuple[bytes, Wait[None]]] = []
        self._done: dict[Segment, list[int]] = {}
        self._unsynced: set[Segment] = set()
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
        """Settlements the counters have not acknowledged."""
        return len(self._spools) + sum(len(one.waiting) for one in self.segments)

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(one.size for one in self.segments)

    def note(self, arguments: bytes, answer: bytes) -> None:
        """Keep what the counters have acknowledged: written within `write_s`, synced within `SYNC_S`."""
        if len(self._notes) >= self._bounds.notes_max:
            self.counts.unlogged += 1
            return
        self._notes.append((answer, arguments))
        self._soon()

    def spool(self, arguments: bytes) -> Wait[None]:
        """Keep what the counters did not acknowledge; set once it is on the disk for certain.

        Fails with CountersUnavailable where there is no room, or not within `spool_s_max`.
        """
        wait: Wait[None] = Wait()
        if len(self._spools) >= self._bounds.spools_max:
            self._refuse([wait])
            return wait
        self._spools.append((arguments, wait))
        if len(self._spools) == 1:
            if self._writing is None:
                self._loop.call_soon(self._turn)
            else:
                self._loop.call_later(self._bounds.spool_s_max, self._give_up_behind, self._writing)
        return wait

    def done(self, segment: Segment, offset: int) -> None:
        """The counters have this spooled record now."""
        segment.done(offset)
        self._done.setdefault(segment, []).append(offset)
        if not self.waiting:
            self._emptied.set()
        self._soon()

    def take_up(self, layout: int) -> None:
        """Keep what comes from now on in this layout."""
        if layout != self.layout:
            self.layout = layout
            if self._current is not None and self._current.empty:  # it says of which layout it is
                self._drop(self._current)
            self.rotate()

    def rotate(self) -> None:
        """Have the next record begin a new file, if there is any in this one."""
        if self._current is not None and not self._current.empty:
            self._current = None

    def expire(self, sure_s: float) -> None:
        """Drop what is old enough: said by whoever has just seen that the counters forgot nothing.

        They may still forget what is younger than `sure_s`. While something is written, the next one does it.
        """
        now = self._clock()
        for one in list(self.segments) if self._writing is None else ():
            adopted = one.adopted and not one.waiting and one.newest <= now - sure_s
            if adopted or (one.spare and one.newest < now - self._keep_s):
                self._drop(one)

    def others(self) -> list[Path]:
        """The files of other workers, whether these are gone or not."""
        ours = {one.path for one in self.segments}
        return sorted(set(self._directory.glob(f"*{SUFFIX}")) - ours - self._left_alone)

    async def adopt(self) -> list[Segment]:
        """Take over the files of workers that are gone."""
        found = []
        for path in self.others():
            try:
                adopted = await asyncio.to_thread(file.adopt, path, self._clock())
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
        """Wait until what was noted before is in its file."""
        for _ in range(2):  # one that is under way, and the one that takes the rest
            if self._notes or self._writing is not None:
                self._turned.clear()
                await self._turned.wait()

    async def sent(self, until: float) -> None:
        """Wait until the counters have all that was spooled, no longer than until a moment (of `clock`)."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock())):
                while self.waiting:
                    self._emptied.clear()
                    await self._emptied.wait()

    async def close(self) -> bool:
        """Write what there is; leave files that may still be needed, remove the others.

        False where the disk takes longer than `close_s_max`: its thread has the files still, and they stay.
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
        """What waits, was adopted or may be forgotten stays for the next worker."""
        needed = self._clock() - self._noted_at < self._bounds.at_risk_s
        for one in self.segments:
            if one.waiting or one.adopted or (needed and not one.empty):
                one.leave()
                self.left_behind = True
            else:
                one.remove()
        self.segments.clear()

    # --- one turn: everything there is in one write ---------------------------------------

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._bounds.write_s, self._turn)

    def _turn(self) -> None:
        """Begin to write, unless a write is under way: its end begins the next."""
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

    def _gathered(self) -> Turn:
        """Take everything that waits to be written and give it its place."""
        turn, now, ms = Turn(), self._clock(), int(self._wall() * 1000)
        notes, self._notes = self._notes, []
        spools, self._spools = self._spools, []
        if self.layout != LAYOUT:
            notes = [(answer, KEPT.earlier(arguments)) for answer, arguments in notes]
            spools = [(KEPT.earlier(arguments), wait) for arguments, wait in spools]
        done, self._done = self._done, {}
        spooled = file.records([(b"", arguments) for arguments, _ in spools])
        noted = file.records(notes)
        segment = self._room(len(spooled) + len(noted)) if notes or spools else None
        if segment is None and notes:
            self.counts.unlogged += len(notes)
            notes, segment = [], self._room(len(spooled)) if spools else None
        if segment is None:
            self._refuse([wait for _, wait in spools])
        elif spools:
            turn.kept, turn.waits = segment, [wait for _, wait in spools]
            at = self._place(turn, segment, file.block(SPOOLED, ms, spooled)) + BLOCK_BYTES
            for arguments, _ in spools:
                turn.spooled[at] = file.RECORD_BYTES + len(arguments)
                at += turn.spooled[at]
        if segment is not None and notes:
            self._place(turn, segment, file.block(ACKNOWLEDGED, ms, noted), len(notes))
            self._noted_at, turn.notes = now, len(notes)
        for marked, places in done.items():
            if marked in self.segments:  # making room may have dropped it
                self._place(turn, marked, file.block(DONE, ms, file.offsets(places)))
        if self._unsynced and (turn.waits or now - self._synced_at >= SYNC_S):
            turn.synced, self._synced_at = list(self._unsynced), now
            self._unsynced.clear()
        return turn

    def _place(self, turn: Turn, segment: Segment, data: bytes, notes: int = 0) -> int:
        """Where in the file this block goes."""
        at = segment.place(len(data), self._clock(), notes)
        turn.writes.append((segment, at, data))
        self._unsynced.add(segment)
        return at

    def _written(self, turn: Turn, written: asyncio.Future[None], bound: asyncio.TimerHandle | None) -> None:
        self._writing = None
        self._turned.set()
        if bound is not None:
            bound.cancel()
        error = written.exception()
        if error is not None:
            # Whatever stands at the end of these files is taken for torn; the next record begins another.
            self.rotate()
            self.counts.unlogged += turn.notes
            self._failed(error)
            self._refuse(turn.waits)
        else:
            self._is_failing = False
        if error is None and turn.kept is not None:
            turn.kept.keep(turn.spooled)
            self.counts.spooled += len(turn.spooled)
            self._is_full = False
            self.woken.set()
            for wait in turn.waits:
                wait.set(None)
        if self._spools:
            self._turn()
        elif self._notes or self._done or self._unsynced:
            self._soon()

    def _give_up_behind(self, writing: asyncio.Future[None]) -> None:
        """The disk hangs: nobody waits longer for its turn, whatever still comes of what was given."""
        if self._writing is writing:
            give_up([wait for _, wait in self._spools])
            self._loop.call_later(
                self._bounds.spool_s_max, self._give_up_behind, writing
            )  # for who comes now

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

    def _room(self, size: int) -> Segment | None:
        """The file that takes two blocks of so many bytes; None where nothing more may be dropped."""
        needed, now = size + 2 * BLOCK_BYTES, self._clock()
        while sum(one.size for one in self.segments if not one.adopted) + needed > self._bytes_max:
            oldest = next((one for one in self.segments if one.spare), None)
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

    def _goes_on(self, segment: Segment, needed: int, now: float) -> bool:
        has_room = segment.size + needed <= self._bytes_max // FILES_MIN
        return has_room and now - segment.began <= self._keep_s / FILES_MIN

    def _begin(self) -> Segment:
        segment = self._current = file.create(self._directory, self._clock(), self.layout)
        self.segments.append(segment)
        return segment

    def _drop_early(self, segment: Segment, now: float) -> None:
        """Make room; say the first time that the log reaches back less far than it should."""
        age_s = now - segment.newest
        if age_s < self._keep_s and segment.notes:
            if not self.counts.dropped_early:
                facts = {"kept_s": round(age_s, 1), "wanted_s": self._keep_s, "bytes_max": self._bytes_max}
                self._say("settlement log is too small: it drops the oldest early", **facts, level="warning")
            self.counts.dropped_early += segment.notes
        self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        self.segments.remove(segment)
        self._unsynced.discard(segment)
        if self._current is segment:
            self._current = None
        segment.remove()


def write(turn: Turn) -> None:
    """In the log's thread: write, then sync what is to be certain."""
    for segment, at, data in turn.writes:
        segment.write(at, data)
    for segment in turn.synced:
        segment.sync()


def give_up(waits: Iterable[Wait[None]]) -> None:
    """Tell who waits that it was not kept, whatever the disk still does."""
    for wait in waits:
        wait.fail(CountersUnavailable())
