"""Opens partitions that were verified after a loss: once everybody has sent again what was forgotten.

A closed partition runs everything but admission. It is opened as soon as each worker known to be
alive reports that all of its log was sent again, and the late queue has charged it: nobody is let
in twice on what was used up before. A worker that died holds the door no longer than a bound, and what
the late queue cannot end no longer than another: that one is the keepers' own work. Any
keeper may open what another one closed, since all of them look at the same reports.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.core.integrity.recovery import GlobalDefinitions, OrphanEntries, Roster, WorkerReport
from gateway.errors import CountersRefused, CountersUnavailable

if TYPE_CHECKING:
    from gateway.counters.history_guard import HistoryGuard
    from gateway.counters.keeper.outbox import OrphanReader
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import LedgerReader
    from persistence.resources.integrity import Quarantines

OPEN_INTERVAL_S = 0.1
AWAY_S = 5.0
# Serving again is promised within ten seconds: noticing and comparing take some of them.
RECOVERY_S_MAX = 7.0
# What workers brought is charged by keepers: as long as they may take for it nobody is let in on it.
LATE_S_MAX = 30.0
# Workers that are waited for so long are named, as many of them as this.
NAMED_S, NAMED_MAX = 1.0, 8
# How long workers nobody knows of have to show up: each reports as soon as it sees other data.
STRANGERS_S = 2.0


@dataclass(slots=True)
class DefinedPartitions:
    """Partitions whose definitions this keeper has written since they were verified; whether that is all."""

    partitions: set[int] = field(default_factory=set)
    is_all: bool = False


class AdmissionGate:
    """Knows who is there while all is well, and waits for them when it is not. `clock` is monotonic.

    `hurry` has the late queue looked at: admitted calls wait for it.
    """

    def __init__(
        self,
        source: LedgerReader,
        target: KeeperCounters,
        clock: Callable[[], float],
        *,
        recovery_s_max: float = RECOVERY_S_MAX,
        late_s_max: float = LATE_S_MAX,
        hurry: Callable[[], None] = lambda: None,
        say: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._source = source
        self._target = target
        self._clock = clock
        self._recovery_s_max, self._late_s_max = recovery_s_max, late_s_max
        self._hurry, self._say = hurry, say
        self._roster = Roster()
        self._watched_at = clock()
        self._kept: frozenset[str] | None = None
        self._named: frozenset[str] = frozenset()

    async def watch(self, reports: Mapping[str, WorkerReport]) -> None:
        """Learn who is there, from reports that were read before all was seen to be verified."""
        if self._kept is None:
            self._kept = frozenset(await self._source.workers())
            self._roster.expect(self._kept - self._roster.worker_slots, self._clock())
        now, since = self._clock(), self._watched_at
        self._watched_at = now
        if now - since > AWAY_S:  # it was this keeper that was not there
            self._roster.expect(self._roster.worker_slots, now)
        if silent := self._roster.hear(reports, now):
            await self._target.dismiss(silent)
        worker_slots = self._roster.worker_slots
        if worker_slots != self._kept:
            await self._source.keep_workers(worker_slots - self._kept, self._kept - worker_slots)
            self._kept = worker_slots

    async def open(
        self,
        run_id: bytes,
        reports: Mapping[str, WorkerReport],
        catalogue: int,
        defined: DefinedPartitions,
        *,
        strangers: bool,
    ) -> None:
        """Open what is closed and `defined`, as long as this run id is the present one, until that is all;
        `reports` are those of before.

        A keeper that did not watch goes by what was kept and by the reports it found; where both may be
        lost (`strangers`), it also waits for newcomers. Each partition waits by itself, since nobody
        reports before it is verified. While more is being defined, a Redis that does not answer is asked
        again: who defines notices by itself whether it is gone.
        """
        if self._kept is None:
            self._roster.expect([*await self._source.workers(), *reports], self._clock())
        since: dict[int, float] = {}
        self._named = frozenset()
        more = True
        while more:
            try:
                more = await self._open_some(run_id, catalogue, defined, since, strangers=strangers)
            except CountersUnavailable:
                if defined.is_all:
                    raise
            if more:
                await asyncio.sleep(OPEN_INTERVAL_S)
        self._roster.expect(self._roster.worker_slots, self._clock())

    async def _open_some(
        self,
        run_id: bytes,
        catalogue: int,
        defined: DefinedPartitions,
        since: dict[int, float],
        *,
        strangers: bool,
    ) -> bool:
        """Open what may be opened now; False where no more follows. `since` is when each was seen closed."""
        markers = await self._target.markers()
        if markers.run_id != run_id:
            return False
        ours = {one: epoch for one, epoch in markers.closed.items() if one in defined.partitions}
        if not ours:
            return not defined.is_all
        # In this order: what a worker sent again before it reported is in the lanes, or charged.
        reports = await self._target.reports()
        late = await self._target.late_waiting()
        if not late.isdisjoint(ours):
            self._hurry()
        now = self._clock()
        gave_up, waited_for, admitted = list[int](), set[str](), list[Awaitable[object]]()
        for partition, epoch in ours.items():
            waited = now - since.setdefault(partition, now)
            missing = self._roster.missing(reports, run_id, partition, epoch)
            may_come = missing or (strangers and waited < STRANGERS_S)
            if may_come and waited < self._recovery_s_max:
                waited_for |= set(missing) if waited >= NAMED_S else set()
                continue
            if partition in late and waited < self._late_s_max:
                continue
            if missing or partition in late:
                gave_up.append(partition)
            admitted.append(self._target.admit(run_id, partition, epoch, catalogue))
        await asyncio.gather(*admitted)
        if waited_for - self._named:
            self._named |= waited_for
            named = sorted(waited_for)[:NAMED_MAX]
            self._say(
                "recovery: waiting for gateways to send again", workers=named, late=len(late & ours.keys())
            )
        if gave_up:
            self._say("admitting before all was brought and charged", partitions=gave_up, level="warning")
        return True

    async def at_rest(self) -> frozenset[int]:
        """Return the partitions whose stored logs were all sent again and checked: whatever else Redis
        has forgotten of them is unknown. None before this keeper has watched.

        Absent workers that may return are waited for too.
        """
        if self._kept is None:
            return frozenset()
        markers = await self._target.markers()
        # In this order, as where it is opened.
        reports = await self._target.reports()
        late = await self._target.late_waiting()
        if self._roster.absent(self._clock()) - reports.keys():
            return frozenset()
        return frozenset(
            partition
            for partition, epoch in markers.verified.items()
            if partition not in late and not self._roster.missing(reports, markers.run_id, partition, epoch)
        )

    @property
    def watched(self) -> bool:
        """Whether this keeper has seen who was there."""
        return self._kept is not None


# Notices counters that are older than PostgreSQL's rows of them, even after a pause of its own.
#
# Every stored entry of a partition was in its stream once: a stream that never had the newest of them is of
# older data, however good its markers look. What went on in such data, over movements that are stored, is
# dropped when it is verified: who was charged by it is charged again, by the workers' settlement logs and by
# the control writes that wait again.

# A look at this history is good for so long, where that is good enough.
LOOKED_S_MAX = 5.0
TROUBLE = "PostgreSQL has rows that this data never had"


class Rewinds:
    """Looks when it is asked to: before anything is stored, and with each look at the markers.

    `first` is awaited before each.
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
        """Find out whether the data is what it was; the wire goes by another history where it is not.

        Unless it is `anew`, a look at this history some seconds ago is good enough: the fence watches.
        """
        if self._first is not None:
            await self._first()
        await self._fence.check_history()
        now, run_id = self._clock(), self._target.run_id
        if not anew and run_id == self._looked_under and now - self._looked_at < LOOKED_S_MAX:
            return
        markers = await self._target.markers()
        marks = {one: mark for one, mark in (await self._stored()).items() if one in markers.verified}
        found = await self._streams.behind(marks, anew=anew)
        behind = [one for one in found if self._said.get(one) != marks[one]]
        if behind and self._target.run_id == markers.run_id:
            await self._fence.announce(TROUBLE)
            self._said |= {one: marks[one] for one in behind}
        self._looked_under, self._looked_at = run_id, now

    async def strays(self, partitions: Sequence[int]) -> dict[int, OrphanEntries]:
        """Return waiting entries of partitions whose stream lacks the newest entry stored in PostgreSQL."""
        marks, stopped = await self._stored(), await self._marks.stopped_accounts()
        found = {
            one: await self._streams.read_strays(one, marks[one], stopped)
            for one in partitions
            if one in marks
        }
        return {one: strays for one, strays in found.items() if strays is not None}

    async def keep_promotion(self, run_id: bytes) -> None:
        """Store the server's promotion, so that no process that learns of it late takes data verified
        under this history for older data.
        """
        await self._fence.keep_promotion(run_id)

    async def drop(self, partition: int, strays: OrphanEntries) -> None:
        """Remove what went on; its accounts must stand as PostgreSQL has them by now."""
        await self._marks.catch_up(partition, await self._streams.drop(strays))

    async def _stored(self) -> dict[int, bytes]:
        return {one: mark for one, (mark, _, _) in (await self._marks.marks()).items() if mark}


# Sees that the lists of everybody stand: the catalogue of services, and the prices.
#
# They are of no partition. So their slots may be lost alone, and be given out empty, and somebody may delete
# them: no marker tells. A worker that starts without a catalogue refuses every call. A catalogue that is
# missing, older than it was, or no such list, is written again as PostgreSQL has it.

LOOK_S = 1.0
# Which of the looks reads the whole catalogue, to see that it is not an older one.
WHOLE_EACH = 10


async def publish(target: KeeperCounters, everybodys: GlobalDefinitions) -> None:
    await target.publish(everybodys.prices, everybodys.version)
    await target.publish(everybodys.catalogue, everybodys.version)


@dataclass(slots=True, eq=False)
class PublishedLists:
    """Looks while `may_write` says so: before Redis is verified, and beside a newer version, others write."""

    source: LedgerReader
    target: KeeperCounters
    may_write: Callable[[], bool]
    log: Callable[..., None] = lambda *_, **__: None
    _looks: int = field(default=0, init=False)
    # The newest version of each that was seen since they were written here.
    _seen: dict[str, int] = field(default_factory=dict, init=False)

    async def run(self) -> None:
        while True:
            try:
                if self.may_write():
                    await self.look()
            except CountersUnavailable as error:
                if isinstance(error, CountersRefused):
                    raise
            await asyncio.sleep(LOOK_S)

    async def look(self) -> list[str]:
        """Write all of them again where one is missing or older; answers which."""
        stand = await self.target.published(whole=self._looks % WHOLE_EACH == 0)
        self._looks += 1
        lacking = sorted(name for name, version in stand.items() if version < self._seen.get(name, 1))
        for name, version in stand.items():
            self._seen[name] = max(version, self._seen.get(name, 0))
        if lacking:
            everybodys = await self.source.everybodys()
            await publish(self.target, everybodys)
            odd = [name for name in lacking if stand[name] < 0]
            facts = {"stood_there": "something else"} if odd else {}
            self.log("written again", keys=lacking, version=everybodys.version, level="warning", **facts)
            self._seen, self._looks = {}, 0  # PostgreSQL may be older than it was
        return lacking
