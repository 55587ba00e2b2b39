"""Recovery after a loss in Redis: which workers have resent their settlements, and which are waited for.

Pure. A worker is known by its slot number, which its successor takes over with its log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

# A worker reports at least twice within this time.
SILENT_S_MAX = 15.0
# How long a silent worker may still come back with the log on its disk.
RETURN_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker's report: the run id of its Redis, a `beat` that changes each time, and epochs by partition.

    All settlements before the epoch of a partition have been resent.
    """

    run_id: bytes
    beat: int
    epochs: tuple[int, ...]


@dataclass(slots=True)
class _LastReport:
    beat: int
    at: float
    present: bool


class Roster:
    """The workers that one keeper knows to be alive. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._last_reports: dict[str, _LastReport] = {}
        self._silent_at: dict[str, float] = {}

    @property
    def worker_slots(self) -> frozenset[str]:
        """The slots of workers that are believed alive: after a loss in Redis the keeper waits for these."""
        return frozenset(self._last_reports)

    def absent(self, now: float) -> frozenset[str]:
        """Return the slots whose workers stopped reporting recently.

        Such workers may return, but the keeper does not wait for them.
        """
        return frozenset(slot for slot, at in self._silent_at.items() if now - at < RETURN_S_MAX)

    def expect(self, worker_slots: Iterable[str], now: float) -> None:
        """Add slots of workers that ran before this keeper started.

        They count as alive at first, and have until `SILENT_S_MAX` seconds from `now` to report.
        """
        for worker_slot in worker_slots:
            beat = self._last_reports[worker_slot].beat if worker_slot in self._last_reports else -1
            self._last_reports[worker_slot] = _LastReport(beat, now, present=False)

    def hear(self, reports: Mapping[str, WorkerReport], now: float) -> list[str]:
        """Record the reports of workers, while no data of Redis is lost.

        Return the slots whose workers stopped reporting though they did not sign off.
        """
        for worker_slot, report in reports.items():
            known = self._last_reports.get(worker_slot)
            if known is None or known.beat != report.beat:
                self._last_reports[worker_slot] = _LastReport(report.beat, now, present=True)
        silent = {slot for slot, report in self._last_reports.items() if now - report.at > SILENT_S_MAX}
        left = {slot for slot, report in self._last_reports.items() if report.present and slot not in reports}
        for worker_slot in silent | left:
            del self._last_reports[worker_slot]
        absent = self.absent(now) - self._last_reports.keys()
        self._silent_at = {slot: self._silent_at[slot] for slot in absent} | dict.fromkeys(silent, now)
        return sorted(silent & reports.keys())

    def missing(
        self, reports: Mapping[str, WorkerReport], run_id: bytes, partition: int, epoch: int
    ) -> Collection[str]:
        """Return the slots of workers that have yet to resend their settlements of a partition.

        A worker has done so if its report is for the Redis process `run_id` and `epoch`. Every slot
        that reports is included, because a new worker may have taken over the log of another.
        """
        here = {worker_slot for worker_slot, report in reports.items() if report.run_id == run_id}
        return [
            worker_slot
            for worker_slot in self.worker_slots | here
            if worker_slot not in here or reports[worker_slot].epochs[partition] < epoch
        ]
