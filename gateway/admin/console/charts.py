"""Use by day as stacked bars: heights for a drawing, numbers for the table beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from gateway.core.accounts.administration import Row

SERIES_MAX = 6
REST = "everything else"
EARLIER = "earlier, not by model"
HEIGHT = 100.0


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
    sums: dict[str, int] = {}
    for _, name, amount in amounts:
        sums[name] = sums.get(name, 0) + amount
    ranked = sorted((name for name in sums if name != EARLIER), key=lambda name: (-sums[name], name))
    series = ranked if len(ranked) <= SERIES_MAX else [*ranked[: SERIES_MAX - 1], REST]
    if sums.get(EARLIER):
        series = [*series, EARLIER]
    by_day: dict[date, dict[str, int]] = {}
    for day, name, amount in amounts:
        kept = name if name in series else REST
        parts = by_day.setdefault(day, {})
        parts[kept] = parts.get(kept, 0) + amount
    top = max((sum(parts.values()) for parts in by_day.values()), default=0)
    days = [since + timedelta(days=n) for n in range((until - since).days + 1)]
    return Chart(
        tuple(_column(day, by_day.get(day, {}), series, top, requests.get(day, 0)) for day in days),
        tuple(series),
        top,
        sum(sums.values()),
    )


def by_service(days: Sequence[Row], names: Mapping[int, str], measure: str) -> list[tuple[date, str, int]]:
    """Roll-ups as (day, service, amount)."""
    found: list[tuple[date, str, int]] = []
    for row in days:
        values: Any = row
        amount = int(values[measure])
        if amount:
            service = int(values["service_id"])
            found.append((values["day"], names.get(service, f"service {service}"), amount))
    return found


def by_model(days: Sequence[Row], models: Sequence[Row]) -> list[tuple[date, str, int]]:
    """Latest uses as (day, model, tokens), with what the roll-ups know beyond them."""
    left: dict[date, int] = {}
    values: Any
    for values in days:
        left[values["day"]] = left.get(values["day"], 0) + int(values["tokens"])
    found: list[tuple[date, str, int]] = []
    for values in models:
        amount = min(int(values["tokens"]), left.get(values["day"], 0))
        left[values["day"]] = left.get(values["day"], 0) - amount
        if amount:
            found.append((values["day"], str(values["model"] or "no model named"), amount))
    return found + [(day, EARLIER, amount) for day, amount in left.items() if amount > 0]


def requests_by_day(days: Sequence[Row]) -> dict[date, int]:
    """Requests of each day."""
    found: dict[date, int] = {}
    values: Any
    for values in days:
        found[values["day"]] = found.get(values["day"], 0) + int(values["requests"])
    return found


def colour_of(index: int, name: str) -> int:
    """The number of a series' colour: what is not told apart has one of its own."""
    return SERIES_MAX if name == EARLIER else index


def _column(day: date, parts: Mapping[str, int], series: Sequence[str], top: int, requests: int) -> Column:
    bars, base = [], 0.0
    for index, name in enumerate(series):
        amount = parts.get(name, 0)
        if amount:
            height = HEIGHT * amount / top
            bars.append(
                Bar(
                    colour_of(index, name),
                    name,
                    amount,
                    round(HEIGHT - base - height, 3),
                    round(max(height, 0.4), 3),
                )
            )
            base += height
    return Column(day, sum(parts.values()), requests, tuple(bars))
