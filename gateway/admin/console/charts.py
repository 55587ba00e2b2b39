"""What was used over time as stacked bars: heights for a drawing, exact amounts for the table beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from gateway.admin.console import shown

SERIES_MAX = 6
REST = "everything else"
HEIGHT = 100.0
MONTH_CHARS = len("2026-01")

Amount = int | Decimal
# When, of which series, how much.
Used = tuple[date, Hashable, Amount]


@dataclass(frozen=True, slots=True)
class Bar:
    """One part of a time's bar: where it stands in a drawing that is 100 high."""

    colour: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One time: what was used of each series, and in all."""

    at: date
    total: Amount
    parts: tuple[Amount, ...]
    bars: tuple[Bar, ...]

    @property
    def seconds(self) -> int:
        """When it begins, in seconds since 1970."""
        begins = self.at if isinstance(self.at, datetime) else datetime(*self.at.timetuple()[:3], tzinfo=UTC)
        return int(begins.timestamp())


@dataclass(frozen=True, slots=True)
class Chart:
    """Times in order, the series' names, most used first, and the highest time.

    `unit` is what is counted; where it is money, in which `currency`.
    """

    columns: tuple[Column, ...]
    series: tuple[str, ...]
    top: Amount
    total: Amount
    unit: str
    currency: str
    interval: str

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Each series with the number of its colour."""
        return [(_colour(index, name), name) for index, name in enumerate(self.series)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was used at all."""
        return not self.top

    def said(self, amount: Amount) -> str:
        """An exact amount."""
        return shown.money(amount, self.currency) if self.currency else shown.number(amount)

    def glance(self, amount: Amount) -> str:
        """An amount at a glance."""
        return shown.about(amount, self.currency) if self.currency else shown.short(float(amount))

    def label(self, column: Column) -> str:
        """How a time is called."""
        if self.interval == "hour":
            return shown.minute(column.at)
        return shown.day(column.at)[: MONTH_CHARS if self.interval == "month" else None]


def stacked(
    used: Iterable[Used],
    times: Sequence[date],
    names: Mapping[Hashable, str],
    *,
    unit: str,
    currency: str = "",
    interval: str = "day",
) -> Chart:
    """Stack what was used at each of the times; of more than `SERIES_MAX` series the least are one."""
    by_time: dict[date, dict[Hashable, Amount]] = {at: defaultdict(int) for at in times}
    sums = defaultdict[Hashable, Amount](int)
    for at, key, amount in used:
        if at in by_time:
            by_time[at][key] += amount
            sums[key] += amount
    ranked = sorted(
        (key for key in sums if sums[key]), key=lambda key: (names[key] == REST, -sums[key], names[key])
    )
    apart = ranked if len(ranked) <= SERIES_MAX else ranked[: SERIES_MAX - 1]
    rest = ranked[len(apart) :]
    totals = {at: sum(parts.values()) for at, parts in by_time.items()}
    top = max(totals.values(), default=0)
    series = (*(names[key] for key in apart), *([REST] if rest else []))
    columns = []
    for at, parts in by_time.items():
        amounts = [parts[key] for key in apart] + ([sum(parts[key] for key in rest)] if rest else [])
        columns.append(Column(at, totals[at], tuple(amounts), _bars(series, amounts, top)))
    return Chart(tuple(columns), series, top, sum(sums.values()), unit, currency, interval)


def _bars(series: Sequence[str], amounts: Sequence[Amount], top: Amount) -> tuple[Bar, ...]:
    bars, base = [], 0.0
    for index, amount in enumerate(amounts):
        if amount > 0:
            height = HEIGHT * float(amount / top)
            y, shown_height = round(HEIGHT - base - height, 3), round(max(height, 0.4), 3)
            bars.append(Bar(_colour(index, series[index]), y, shown_height))
            base += height
    return tuple(bars)


def _colour(index: int, name: str) -> int:
    """The number of a series' colour: what is not told apart has one of its own."""
    return SERIES_MAX if name == REST else index
