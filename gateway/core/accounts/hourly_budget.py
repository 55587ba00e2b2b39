"""The most work of an organization's people within an hour: CPU, rows, and time. Pure."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil

from gateway.core.http_limits import HOUR_CPU_S, HOUR_ROWS, HOUR_WORK_S
from gateway.errors import HourSpent

HOUR_S = 3600.0
# Most organizations whose hours are stored; beyond that the oldest hours are forgotten.
KNOWN_MAX = 10_000


@dataclass(frozen=True, slots=True)
class HourlyBudget:
    """The most work per hour for each organization: CPU seconds, rows, and seconds of work."""

    cpu_s: float = HOUR_CPU_S
    rows: int = HOUR_ROWS
    work_s: float = HOUR_WORK_S


HOURLY = HourlyBudget()


@dataclass(slots=True)
class HourlyUse:
    """The work that an organization has used since `began` (Unix time)."""

    began: float
    cpu_s: float = 0.0
    rows: int = 0
    work_s: float = 0.0


@dataclass(slots=True)
class WorkMeter:
    """Counts the work of one request for its organization's `hour`; None until the organization is known."""

    hour: HourlyUse | None = field(default=None)


# The meter of the current request. Tasks and threads that run for the request see it too.
METER: ContextVar[WorkMeter | None] = ContextVar("meter", default=None)


class Hours:
    """The hourly use of all organizations. `clock` returns Unix time."""

    def __init__(self, budget: HourlyBudget, clock: Callable[[], float], known_max: int = KNOWN_MAX) -> None:
        self._budget, self._clock, self._known_max = budget, clock, known_max
        self._known: dict[int, HourlyUse] = {}

    def of(self, organization_id: int) -> HourlyUse:
        """Return an organization's counters of use in its current hour.

        Raise `HourSpent` if a limit of the hour is used up; its message names the limit and the end
        of the hour.
        """
        now, hour = self._clock(), self._known.get(organization_id)
        if hour is None or not 0 <= now - hour.began < HOUR_S:
            self._known.pop(organization_id, None)
            hour = self._known[organization_id] = HourlyUse(now)
            while len(self._known) > self._known_max:
                del self._known[next(iter(self._known))]
        if spent := self._exhausted_part(hour):
            left_s = hour.began + HOUR_S - now
            until = datetime.fromtimestamp(hour.began + HOUR_S, UTC)
            raise HourSpent(
                f"This organization has used up its {spent} an hour for reports, files, documents and plans"
                f" of configuration: there is more from {until:%Y-%m-%dT%H:%M:%SZ} on.",
                ceil(left_s),
            )
        return hour

    def _exhausted_part(self, hour: HourlyUse) -> str:
        """Return the part of the budget that an hour has used up, as text; empty if none."""
        budget = self._budget
        if hour.cpu_s >= budget.cpu_s:
            return f"{budget.cpu_s:g} s of CPU"
        if hour.rows >= budget.rows:
            return f"{budget.rows:,} rows"
        return f"{budget.work_s:g} s of work" if hour.work_s >= budget.work_s else ""


def count_rows(number: int) -> None:
    """Add `number` to the rows that the current request's organization has read in this hour."""
    if (meter := METER.get()) is not None and meter.hour is not None and number > 0:
        meter.hour.rows += number
