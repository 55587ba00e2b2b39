"""Opens partitions that were verified after a loss: once everybody has sent again what was forgotten.

A closed partition runs everything but admission. It is opened as soon as each worker known to be
alive reports that all of its log was sent again, and the late queue has charged it: nobody is let
in twice on what was used up before. A worker that died holds the door no longer than a bound, and what
the late queue cannot end no longer than another: that one is the keepers' own work. Any
keeper may open what another one closed, since all of them look at the same reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway.core.integrity.recovery import Markers, Report, Roster
from gateway.errors import CountersUnavailable

OPEN_INTERVAL_S = 0.1
AWAY_S = 5.0
# Serving again is promised within ten seconds: noticing and comparing take some of them.
RECOVERY_S_MAX = 7.0
# What workers brought is charged by keepers: as long as they may take for it nobody is let in on it.
LATE_S_MAX = 30.0
# Whoever is waited for so long is named, as many of them as this.
NAMED_S, NAMED_MAX = 1.0, 8
# How long workers nobody knows of have to show up: each reports as soon as it sees other data.
STRANGERS_S = 2.0


@dataclass(slots=True)
class Defined:
    """Partitions whose definitions this keeper has written since they were verified; whether that is all."""

    partitions: set[int] = field(default_factory=set)
    is_all: bool = False


class Source(Protocol):
    """PostgreSQL."""

    async def workers(self) -> list[str]:
        """The numbers of all workers any keeper knew last."""

    async def keep_workers(self, came: Collection[str], gone: Collection[str]) -> None:
        """Keep who is there, for a keeper that starts after a loss."""


class Target(Protocol):
    """The counters."""

    async def reports(self) -> Mapping[str, Report]:
        """What workers reported last, by worker number."""

    async def dismiss(self, worker_slots: Collection[str]) -> None:
        """Forget the reports of workers that are gone."""

    async def markers(self) -> Markers:
        """The partitions as their markers stand."""

    async def late_waiting(self) -> frozenset[int]:
        """Partitions with settlements in their late queue."""

    async def admit(self, run_id: bytes, partition: int, epoch: int, catalogue: int) -> bool:
        """Open a partition that was closed under this run id and epoch; False where the marker moved on."""


class AdmissionGate:
    """Knows who is there while all is well, and waits for them when it is not. `clock` is monotonic.

    `hurry` has the late queue looked at: whoever is let in waits for what is in it.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
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

    async def watch(self, reports: Mapping[str, Report]) -> None:
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
        reports: Mapping[str, Report],
        catalogue: int,
        defined: Defined,
        *,
        strangers: bool,
    ) -> None:
        """Open what is closed and `defined`, as long as this run id is the present one, until that is all;
        `reports` are those of before.

        A keeper that did not watch goes by what was kept and by the reports it found; where both may
        be lost (`strangers`), it also waits for whoever shows up. Each partition waits by itself, since
        nobody reports before it is verified. While more is being defined, a Redis that does not answer is
        asked again: who defines notices by itself whether it is gone.
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
        self, run_id: bytes, catalogue: int, defined: Defined, since: dict[int, float], *, strangers: bool
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
        gave_up, waited_for = list[int](), set[str]()
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
            await self._target.admit(run_id, partition, epoch, catalogue)
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
        """Partitions of which all that anybody kept was sent again, and was looked at: what else Redis may
        have forgotten of them, nobody knows. None before this keeper has watched.

        Who is not here and may come back is waited for too.
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
