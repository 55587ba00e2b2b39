"""Opens verified partitions to admission after Redis lost data, once workers have sent their logs again.

A closed partition runs every script except admission. It opens when each worker known to be alive has
reported that it sent all of its settlement log again, and the late queue has charged it, so that no used-up
budget is spent twice. A dead worker delays the opening no longer than one bound, and a late queue that cannot
be emptied no longer than another, larger one, since the keepers drain it themselves. Any keeper may open a
partition that another one closed, because all keepers read the same reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.core.integrity.roster import Roster, WorkerReport
from gateway.errors import CountersUnavailable

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import LedgerReader

OPEN_INTERVAL_S = 0.1
AWAY_S = 5.0
# Recovery is promised within ten seconds; noticing and comparing take some of them.
RECOVERY_S_MAX = 7.0
# The longest time that admission waits for keepers to charge the late settlements.
LATE_S_MAX = 30.0
# After this many seconds the log names the workers that are awaited, up to this number.
NAMED_S, NAMED_MAX = 1.0, 8
# Time for unknown workers to appear: each reports as soon as it notices other data.
STRANGERS_S = 2.0


@dataclass(slots=True)
class DefinedPartitions:
    """The partitions whose definitions this keeper wrote since their verification; whether that is all.

    `served` are those that admit calls, as the gate last saw.
    """

    partitions: set[int] = field(default_factory=set)
    is_all: bool = False
    served: frozenset[int] = frozenset()


class AdmissionGate:
    """Tracks live workers, and opens a closed partition when they have sent their logs again.

    `clock` is monotonic, in seconds. `hurry` starts a pass over the late queue, because admissions wait for
    it.
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
        """Update the set of live gateway workers, and dismiss those that are silent for too long.

        The `reports` must be read before all partitions are seen to be verified.
        """
        if self._kept is None:
            self._kept = frozenset(await self._source.workers())
            self._roster.expect(self._kept - self._roster.worker_slots, self._clock())
        now, since = self._clock(), self._watched_at
        self._watched_at = now
        if now - since > AWAY_S:  # this keeper itself was away
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
        """Open closed partitions to calls, until all are open or Redis has another run id.

        A partition must be in `defined`, and is opened by itself. `reports` were read before verification
        began. A keeper that has not watched waits for the workers stored in PostgreSQL and those in
        `reports`, and with `strangers` also a moment for unknown workers, since both may be lost. Markers get
        the version of the list of services, `catalogue`. CountersUnavailable is raised only once all are
        defined; before that the query is retried.
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
        """Open the closed partitions that may be opened now; return False if none is left to open.

        Parameters are those of `open`. `since` stores, by partition, when it was first seen closed.
        """
        markers = await self._target.markers()
        if markers.run_id != run_id:
            return False
        defined.served = frozenset(markers.verified.keys() - markers.closed.keys())
        ours = {
            partition: epoch for partition, epoch in markers.closed.items() if partition in defined.partitions
        }
        if not ours:
            return not defined.is_all
        # In this order: a settlement sent again before a report is in the late queue, or charged.
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
        """Return partitions whose workers have all sent their logs again, and whose late queue is empty.

        Movements of such a partition that Redis still lacks are lost for good. Empty before this keeper has
        watched the workers, and while a known worker is absent that may return.
        """
        if self._kept is None:
            return frozenset()
        markers = await self._target.markers()
        # In the same order as in `_open_some`.
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
        """Whether this keeper has tracked the live workers since its start."""
        return self._kept is not None
