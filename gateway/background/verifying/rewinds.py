"""Notices that Redis went back to an earlier state of its data."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from gateway.core.integrity.recovery import OrphanEntries

if TYPE_CHECKING:
    from gateway.counters.history_guard import HistoryGuard
    from gateway.counters.keeper.outbox import OrphanReader
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.resources.integrity import Quarantines


# How long a check of one history stays valid for callers that accept a recent one.
LOOKED_S_MAX = 5.0
TROUBLE = "PostgreSQL has rows that this data never had"


class Rewinds:
    """Checks whether Redis was set back to older data: before each flush, and before markers are read.

    `first` is awaited before each check.
    """

    def __init__(
        self,
        fence: HistoryGuard,
        target: KeeperCounters,
        streams: OrphanReader,
        marks: Quarantines,
        *,
        first: Callable[[], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first, self._clock = first, clock
        self._looked_under, self._looked_at = b"", 0.0
        self._fence, self._target, self._streams, self._marks = fence, target, streams, marks
        self._said: dict[int, bytes] = {}

    async def notice(self, *, anew: bool = True) -> None:
        """Check whether Redis was set back to older data; if so, announce that to all processes.

        Without `anew`, a check of this history up to `LOOKED_S_MAX` seconds ago is enough.
        """
        if self._first is not None:
            await self._first()
        await self._fence.check_history()
        now, run_id = self._clock(), self._target.run_id
        if not anew and run_id == self._looked_under and now - self._looked_at < LOOKED_S_MAX:
            return
        markers = await self._target.markers()
        marks = {
            partition: mark
            for partition, mark in (await self._stored()).items()
            if partition in markers.verified
        }
        positions = await self._streams.behind(marks, anew=anew)
        behind = [partition for partition in positions if self._said.get(partition) != marks[partition]]
        if behind and self._target.run_id == markers.run_id:
            await self._fence.announce(TROUBLE)
            self._said |= {partition: marks[partition] for partition in behind}
        self._looked_under, self._looked_at = run_id, now

    async def strays(self, partitions: Sequence[int]) -> dict[int, OrphanEntries]:
        """Return by partition the entries that a Redis with older data has added.

        They are in a stream that lacks the newest entry stored in PostgreSQL.
        """
        marks, stopped = await self._stored(), await self._marks.stopped_accounts()
        strays_ = {
            partition: await self._streams.read_strays(partition, marks[partition], stopped)
            for partition in partitions
            if partition in marks
        }
        return {partition: strays for partition, strays in strays_.items() if strays is not None}

    async def keep_promotion(self, run_id: bytes) -> None:
        """Store that the server of this run id is a promoted replica.

        Otherwise a process that learns of it later takes the data verified under this run id for older data.
        """
        await self._fence.keep_promotion(run_id)

    async def drop(self, partition: int, strays: OrphanEntries) -> None:
        """Delete the entries `strays` of a partition, which a Redis with older data added.

        The accounts must already be restored from PostgreSQL.
        """
        await self._marks.catch_up(partition, await self._streams.drop(strays))

    async def _stored(self) -> dict[int, bytes]:
        marks = await self._marks.marks()
        return {partition: mark.entry_id for partition, mark in marks.items() if mark.entry_id}
