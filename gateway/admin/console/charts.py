"""Use by day as stacked bars: heights for a drawing, numbers for the table beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

SERIES_MAX = 6
REST = "everything else"
EARLIER = "earlier, not by model"
HEIGHT = 100.0

Use = Mapping[str, Any]  # a row of figures: a day, and what was used


@dataclass(frozen=True, slots=True)
class Bar:
    """One part of a day's bar: where it stands in a drawing that is 100 high."""

    colour: int
    label: str
    amount: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One day."""

    day: date
    total: int
    requests: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Days in order, the series' names, most used first, and the highest day."""

    columns: tuple[Column, ...]
    series: tuple[str, ...]
    top: int
    total: int

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Each series with the number of its colour."""
        return [(colour_of(index, name), name) for index, name in enumerate(self.series)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was used at all."""
        return self.total == 0 and not any(column.requests for column in self.columns)


def stacked(
    amounts: Sequence[tuple[date, str, int]], requests: Mapping[date, int], *, since: date, until: date
) -> Chart:
    """Stack amounts of (day, series) into a chart of every day from `since` to `until`."""
    sums = Counter[str]()
    for _, name, amount in amounts:
        sums[name] += amount
    ranked = sorted(sums.keys() - {EARLIER}, key=lambda name: (-sums[name], name))
    series = ranked if len(ranked) <= SERIES_MAX else [*ranked[: SERIES_MAX - 1], REST]
    if sums[EARLIER]:
        series = [*series, EARLIER]
    by_day = defaultdict[date, Counter[str]](Counter)
    for day, name, amount in amounts:
        by_day[day][name if name in series else REST] += amount
    top = max((parts.total() for parts in by_day.values()), default=0)
    days = [since + timedelta(days=n) for n in range((until - since).days + 1)]
    columns = tuple(_column(day, by_day[day], series, top, requests.get(day, 0)) for day in days)
    return Chart(columns, tuple(series), top, sums.total())


def by_service(days: Sequence[Use], names: Mapping[int, str], measure: str) -> list[tuple[date, str, int]]:
    """Roll-ups as (day, service, amount)."""
    return [
        (use["day"], names.get(use["service_id"], f"service {use['service_id']}"), int(use[measure]))
        for use in days
        if use[measure]
    ]


def by_model(days: Sequence[Use], models: Sequence[Use]) -> list[tuple[date, str, int]]:
    """Latest uses as (day, model, tokens), with what the roll-ups know beyond them."""
    left = Counter[date]()
    for use in days:
        left[use["day"]] += int(use["tokens"])
    found: list[tuple[date, str, int]] = []
    for use in models:
        amount = min(int(use["tokens"]), left[use["day"]])
        left[use["day"]] -= amount
        if amount:
            found.append((use["day"], str(use["model"] or "no model named"), amount))
    return found + [(day, EARLIER, amount) for day, amount in left.items() if amount > 0]


def requests_by_day(days: Sequence[Use]) -> Mapping[date, int]:
    """Requests of each day."""
    found = Counter[date]()
    for use in days:
        found[use["day"]] += int(use["requests"])
    return found


def colour_of(index: int, name: str) -> int:
    """The number of a series' colour: what is not told apart has one of its own."""
    return SERIES_MAX if name == EARLIER else index


def _column(day: date, parts: Counter[str], series: Sequence[str], top: int, requests: int) -> Column:
    bars, base = [], 0.0
    for index, name in enumerate(series):
        if parts[name]:
            height = HEIGHT * parts[name] / top
            y, shown = round(HEIGHT - base - height, 3), round(max(height, 0.4), 3)
            bars.append(Bar(colour_of(index, name), name, parts[name], y, shown))
            base += height
    return Column(day, parts.total(), requests, tuple(bars))
