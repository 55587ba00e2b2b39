"""Notices counters that are older than what PostgreSQL has of them, whoever slept when they were exchanged.

What was stored of a partition was in its stream once: a stream that never had the newest of it is of older
data, however good its markers look. What went on in such data, over movements that are stored, is dropped
when it is verified: who was charged by it is charged again, by the workers' settlement logs and by the
control writes that wait again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from gateway.core.integrity.recovery import Markers
from gateway.core.integrity.strays import Strays

TROUBLE = "PostgreSQL has rows that this data never had"


class Streams(Protocol):
    """The outbox, looked at."""

    async def behind(self, marks: Mapping[int, bytes], *, anew: bool) -> list[int]:
        """The partitions whose stream never had this entry; `anew` not by what is known of this history."""

    async def read_strays(self, partition: int, mark: bytes, stopped: Collection[str]) -> Strays | None:
        """What waits in a stream that never had an entry, but for accounts in quarantine; None where it had
        that.
        """

    async def drop(self, strays: Strays) -> bytes:
        """Remove them; answers from where on the stream goes on."""


class Target(Protocol):
    """The counters' markers."""

    @property
    def run_id(self) -> bytes:
        """The history this connection speaks to."""

    async def markers(self) -> Markers:
        """The partitions as their markers stand."""


class Fence(Protocol):
    """What distinguishes one history from another."""

    async def check_history(self) -> None:
        """Make sure that what was read until now is of the history that is named."""

    async def announce(self, trouble: str) -> None:
        """Say that this data is older than it was."""

    async def keep_promotion(self, run_id: bytes) -> None:
        """Say that this data is verified as it is since its server was promoted, if it is of this history."""


class Marks(Protocol):
    """What flushes noted."""

    async def marks(self) -> Mapping[int, tuple[bytes, int, bool]]:
        """Of each partition the newest entry stored, the epoch, whether rows of it are known to be gone."""

    async def stopped_accounts(self) -> Collection[str]:
        """Who is quarantined."""

    async def catch_up(self, partition: int, entry_id: bytes) -> None:
        """Note that a partition's stream goes on after this entry."""


class Rewinds:
    """Looks when it is asked to: before anything is stored, and with each look at the markers.

    `first` is awaited before each.
    """

    def __init__(
        self,
        fence: Fence,
        target: Target,
        streams: Streams,
        marks: Marks,
        *,
        first: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._first = first
        self._fence, self._target, self._streams, self._marks = fence, target, streams, marks
        self._said: dict[int, bytes] = {}

    async def notice(self, *, anew: bool = True) -> None:
        """Find out whether the data is what it was; the wire goes by another history where it is not.

        Unless it is `anew`, what was seen of this history some seconds ago is good enough: the fence watches.
        """
        if self._first is not None:
            await self._first()
        await self._fence.check_history()
        markers = await self._target.markers()
        marks = {one: mark for one, mark in (await self._stored()).items() if one in markers.verified}
        found = await self._streams.behind(marks, anew=anew)
        behind = [one for one in found if self._said.get(one) != marks[one]]
        if behind and self._target.run_id == markers.run_id:
            await self._fence.announce(TROUBLE)
            self._said |= {one: marks[one] for one in behind}

    async def strays(self, partitions: Sequence[int]) -> dict[int, Strays]:
        """What waits in these partitions, where the stream never had the newest entry that is stored."""
        marks, stopped = await self._stored(), await self._marks.stopped_accounts()
        found = {
            one: await self._streams.read_strays(one, marks[one], stopped)
            for one in partitions
            if one in marks
        }
        return {one: strays for one, strays in found.items() if strays is not None}

    async def keep_promotion(self, run_id: bytes) -> None:
        """Have nobody who hears late of the server's promotion take what is verified under this history for
        older data.
        """
        await self._fence.keep_promotion(run_id)

    async def drop(self, partition: int, strays: Strays) -> None:
        """Remove what went on; its accounts must stand as PostgreSQL has them by now."""
        await self._marks.catch_up(partition, await self._streams.drop(strays))

    async def _stored(self) -> dict[int, bytes]:
        return {one: mark for one, (mark, _, _) in (await self._marks.marks()).items() if mark}
