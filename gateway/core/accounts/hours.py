"""What may be done for the people of one organization within an hour: CPU, rows, and time. Pure.

It is counted for what costs much by what is asked: reports, files, documents, plans of configuration. An hour
begins with the first of them. Staff are counted nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil

from gateway.errors import HourSpent

HOUR_S = 3600.0
# Organizations whose hours are known; of more, those that began first are forgotten.
KNOWN_MAX = 10_000


@dataclass(frozen=True, slots=True)
class HourlyBudget:
    """How much of each one organization has."""

    cpu_s: float = 300.0
    rows: int = 5_000_000
    work_s: float = 1800.0


HOURLY = HourlyBudget()


@dataclass(slots=True)
class Hour:
    """What was done since it began, Unix time."""

    began: float
    cpu_s: float = 0.0
    rows: int = 0
    work_s: float = 0.0


@dataclass(slots=True)
class Meter:
    """Where what is done for one request is counted: nowhere, until it is known whose it is."""

    hour: Hour | None = field(default=None)


# Of the request that is being answered. What runs for it, tasks and threads too, finds it.
METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


class Hours:
    """The hours of all organizations; `clock` is Unix time."""

    def __init__(self, budget: HourlyBudget, clock: Callable[[], float], known_max: int = KNOWN_MAX) -> None:
        self._budget, self._clock, self._known_max = budget, clock, known_max
        self._known: dict[int, Hour] = {}

    def of(self, organization_id: int) -> Hour:
        """An organization's hour; `HourSpent` says of what it has used up its share, and until when."""
        now, hour = self._clock(), self._known.get(organization_id)
        if hour is None or not 0 <= now - hour.began < HOUR_S:
            self._known.pop(organization_id, None)
            hour = self._known[organization_id] = Hour(now)
            while len(self._known) > self._known_max:
                del self._known[next(iter(self._known))]
        if spent := self._spent(hour):
            left_s = hour.began + HOUR_S - now
            until = datetime.fromtimestamp(hour.began + HOUR_S, UTC)
            raise HourSpent(
                f"This organization has used up its {spent} an hour for reports, files, documents and plans"
                f" of configuration: there is more from {until:%Y-%m-%dT%H:%M:%SZ} on.",
                ceil(left_s),
            )
        return hour

    def _spent(self, hour: Hour) -> str:
        budget = self._budget
        if hour.cpu_s >= budget.cpu_s:
            return f"{budget.cpu_s:g} s of CPU"
        if hour.rows >= budget.rows:
            return f"{budget.rows:,} rows"
        return f"{budget.work_s:g} s of work" if hour.work_s >= budget.work_s else ""


def count_rows(number: int) -> None:
    """Count rows that were read for the request that is being answered."""
    if (meter := METER.get()) is not None and meter.hour is not None and number > 0:
        meter.hour.rows += number
