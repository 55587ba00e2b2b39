"""The worker's own memory of what it settled: one bounded, fsynced log in files on its disk.

What the counters acknowledged is noted, for the case that they forget their last second. What
they did not acknowledge is spooled: once that is on the disk it is as good as settled, and it
waits there until the counters have it. Acknowledged records make room when space is short;
spooled ones are never dropped: full means that a settlement fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from gateway.core.wait import Wait
from gateway.counters.settlement_log.log_files import LogFiles
from gateway.counters.settlement_log.log_turn import Turn, give_up, write
from gateway.counters.settlement_log.segment import (
    ACKNOWLEDGED,
    BLOCK_BYTES,
    DONE,
    RECORD_BYTES,
    SPOOLED,
    block,
    offsets,
    records,
)
from gateway.counters.settlement_log.segment_file import Segment

WRITE_S = 0.05
SYNC_S = 1.0
SPOOL_S_MAX = 2.0
# Behind the data plane's grace and its last calls: a worker is gone within 25 seconds.
CLOSE_S_MAX = 1.0
# A Redis that syncs its append-only file once a second has what is older than this.
AT_RISK_S = 2.0
NOTES_MAX = SPOOLS_MAX = 50_000


@dataclass(slots=True)
class LogCounts:
    """What happened since the log was opened.

    `refused` settlements could be kept nowhere; `unlogged` ones were acknowledged, and nothing
    is here should the counters forget them.
    """

    spooled: int = 0
    refused: int = 0
    unlogged: int = 0


class SettlementLog:
    """The log of one worker. `clock` is monotonic, `wall` tells seconds since the epoch."""

    def __init__(
        self,
        files: LogFiles,
        clock: Callable[[], float],
        wall: Callable[[], float],
        say: Callable[..., None],
    ) -> None:
        self.files = files
        self.counts = LogCounts()
        self.woken = asyncio.Event()
        self._clock, self._wall, self._say = clock, wall, say
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "settlement-log")
        self._notes: list[tuple[bytes, bytes]] = []
        self._spools: list[tuple[bytes, Wait[None]]] = []
        self._done: dict[Segment, list[int]] = {}
        self._dropped: list[Segment] = []
        self._unsynced: set[Segment] = set()
        self._synced_at = clock()
        self._noted_at = -AT_RISK_S
        self._timer: asyncio.TimerHandle | None = None
        self._syncing: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._is_full = self._is_failing = self._closed = False
        self._turned = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Settlements the counters have not acknowledged."""
        return len(self._spools) + self.files.waiting

    def note(self, arguments: bytes, answer: bytes) -> None:
        """Keep what the counters have acknowledged: written within `WRITE_S`, synced within `SYNC_S`."""
        if len(self._notes) >= NOTES_MAX:
            self.counts.unlogged += 1
            return
        self._notes.append((answer, arguments))
        self._soon(WRITE_S)

    def spool(self, arguments: bytes) -> Wait[None]:
        """Keep what the counters did not acknowledge; set once it is on the disk for certain.

        Fails with CountersUnavailable where there is no room, or not within `SPOOL_S_MAX`.
        """
        wait: Wait[None] = Wait()
        if len(self._spools) >= SPOOLS_MAX:
            self._refuse([wait])
            return wait
        self._spools.append((arguments, wait))
        if len(self._spools) == 1:
            if self._writing is None:
                self._loop.call_soon(self._turn)
            else:
                self._loop.call_later(SPOOL_S_MAX, self._give_up_behind, self._writing)
        return wait

    def done(self, segment: Segment, offset: int) -> None:
        """The counters have this spooled record now."""
        del segment.waiting[offset]
        self._done.setdefault(segment, []).append(offset)
        self._soon(WRITE_S)

    def drop(self, segment: Segment) -> None:
        """Remove a file nothing waits in, as soon as nothing is written to it."""
        self._dropped.append(segment)
        self._soon(0.0)

    def expire(self) -> None:
        """Drop what is old enough: said by whoever has just seen that the counters forgot nothing."""
        if self._writing is None:
            self.files.expire()

    async def written(self) -> None:
        """Wait until what was noted before is in its file."""
        for _ in range(2):  # one that is under way, and the one that takes the rest
            if self._notes or self._writing is not None:
                self._turned.clear()
                await self._turned.wait()

    async def close(self) -> bool:
        """Write what there is; leave files that may still be needed, remove the others.

        False where the disk takes longer than `CLOSE_S_MAX`: its thread has the files still, and they stay.
        """
        if self._closed:
            return True
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                for _ in range(2):
                    self._synced_at = self._clock() - SYNC_S
                    self._turn()
                    while self._writing is not None:
                        await asyncio.wait([self._writing])
                        await asyncio.sleep(0)
                needed = self._clock() - self._noted_at < AT_RISK_S
                await self._loop.run_in_executor(self._executor, partial(self.files.close, needed=needed))
        except TimeoutError:
            self._say("settlement log was not closed: its disk hangs", waiting=self.waiting, level="error")
            return False
        finally:
            for timer in filter(None, (self._timer, self._syncing)):
                timer.cancel()
        self._executor.shutdown()
        self._closed = True
        return True

    # --- one turn: everything there is in one write ---------------------------------------

    def _soon(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._turn)

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
            return
        self._writing = self._loop.run_in_executor(self._executor, write, turn)
        bound = self._loop.call_later(SPOOL_S_MAX, give_up, turn.waits) if turn.waits else None
        self._writing.add_done_callback(lambda written: self._written(turn, written, bound))

    def _gathered(self) -> Turn:
        """Take everything that waits to be written and give it its place."""
        turn, now, ms = Turn(), self._clock(), int(self._wall() * 1000)
        dropped, self._dropped = self._dropped, []
        for unneeded in dropped:
            if unneeded in self.files.segments:
                self.files.drop(unneeded)
        notes, self._notes = self._notes, []
        spools, self._spools = self._spools, []
        done, self._done = self._done, {}
        spooled = records([(b"", arguments) for arguments, _ in spools])
        noted = records(notes)
        segment, has_room = self._room(len(spooled), len(noted))
        if spools and segment is not None:
            at = self._place(turn, segment, block(SPOOLED, ms, spooled)) + BLOCK_BYTES
            for arguments, wait in spools:
                length = RECORD_BYTES + len(arguments)
                turn.spooled.append((segment, at, length))
                turn.waits.append(wait)
                at += length
        elif spools:
            self._refuse([wait for _, wait in spools])
        if segment is not None and notes and has_room:
            self._place(turn, segment, block(ACKNOWLEDGED, ms, noted))
            self._noted_at, turn.notes = now, len(notes)
            segment.notes += len(notes)
        else:
            self.counts.unlogged += len(notes)
        for marked, places in done.items():
            if marked in self.files.segments:  # making room may have dropped it
                self._place(turn, marked, block(DONE, ms, offsets(places)))
        self._unsynced.intersection_update(self.files.segments)
        if self._unsynced and (turn.waits or now - self._synced_at >= SYNC_S):
            turn.synced, self._synced_at = list(self._unsynced), now
            self._unsynced.clear()
        return turn

    def _room(self, spooled: int, noted: int) -> tuple[Segment | None, bool]:
        try:
            return self.files.room_for(spooled, noted)
        except OSError as error:
            self._failed(error)
            return None, False

    def _place(self, turn: Turn, segment: Segment, data: bytes) -> int:
        """Where in the file this block goes."""
        at = segment.size
        turn.writes.append((segment, at, data))
        segment.size += len(data)
        segment.newest = self._clock()
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
            self.files.rotate()
            self.counts.unlogged += turn.notes
            self._failed(error)
            self._refuse(turn.waits)
        else:
            self._is_failing = False
        if error is None and turn.spooled:
            for file, at, length in turn.spooled:
                file.waiting[at] = length
            self.counts.spooled += len(turn.spooled)
            self._is_full = False
            self.woken.set()
            for wait in turn.waits:
                wait.set(None)
        if self._spools:
            self._turn()
        elif self._notes or self._done or self._dropped:
            self._soon(WRITE_S)
        if self._unsynced and self._syncing is None:
            self._syncing = self._loop.call_later(SYNC_S, self._sync_due)

    def _give_up_behind(self, writing: asyncio.Future[None]) -> None:
        """The disk hangs: nobody waits longer for its turn, whatever still comes of what was given."""
        if self._writing is writing:
            give_up([wait for _, wait in self._spools])
            self._loop.call_later(SPOOL_S_MAX, self._give_up_behind, writing)  # for who comes now

    def _sync_due(self) -> None:
        self._syncing = None
        self._turn()

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
