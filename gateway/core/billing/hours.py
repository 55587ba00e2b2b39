"""Prices by the hour: which factor a price has at a moment, by the wall clocks of its zones. Pure.

A moment is in hours where a clock of their zone shows a time in them. So an hour that comes twice is in them
twice, and one that is skipped is in none. Hours over midnight belong to the day that they begin on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Any, Final

from gateway.core.accounts.intervals import DAYS_OF_WEEK
from gateway.core.billing.money import EXACT
from gateway.core.billing.vector import SAME, Factor, PriceHours, PriceSpan
from gateway.core.times import DAY_MS, MINUTE_MS, TimeZone, offset_at

BEGIN, END = "begin", "end"
EXCEPT_MAX: Final = 400
HOUR_MINUTES: Final = 60
DAY_MINUTES: Final = 24 * HOUR_MINUTES
_WEEK_MINUTES: Final = DAYS_OF_WEEK * DAY_MINUTES
_ONE_DAY: Final = timedelta(days=1)
# The days whose offsets tell whether hours of two zones meet: rules of clocks repeat each year.
_COMPARED_SINCE_MS: Final = 1_767_225_600_000  # 2026-01-01
_COMPARED_DAYS: Final = 2 * 366
_ZONES_MAX: Final = 1_024


def read_hours(row: Mapping[str, Any]) -> PriceHours | None:
    """Return the hours in a price row; None if it has none."""
    if not row.get("hours"):
        return None
    spans = tuple([
        PriceSpan(
            tuple(span["days"]), minute_of(span["from"]), minute_of(span["to"]), span["time_zone"],
            Fraction(span["factor"]).as_integer_ratio(),
            tuple([date.fromisoformat(day).toordinal() for day in span.get("except") or ()]),
        )
        for span in row["hours"]
    ])  # fmt: skip
    return PriceHours(spans, row.get("hours_at") == END)


def minute_of(clock: str) -> int:
    """Return the minute of the day of a time such as `23:59`; `24:00` is the end of a day."""
    return int(clock[:2]) * HOUR_MINUTES + int(clock[3:])


def decimal_of(factor: Factor) -> str:
    """Return a factor as decimal text, which it was read from."""
    return f"{EXACT.divide(Decimal(factor[0]), Decimal(factor[1])):f}"


def factor_at(hours: PriceHours, at_ms: float) -> Factor:
    """Return the factor of a price at a moment (Unix ms), 1 outside of its hours."""
    for span in hours.spans:
        local = datetime.fromtimestamp(at_ms // 1000, _zone(span.time_zone))
        day, minute = local.date(), local.hour * HOUR_MINUTES + local.minute
        over_midnight = span.until <= span.since
        if minute >= span.since and (over_midnight or minute < span.until) and _is_on(span, day):
            return span.factor
        if over_midnight and minute < span.until and _is_on(span, day - _ONE_DAY):
            return span.factor
    return SAME


def dearest_factor(hours: PriceHours, since_ms: float, until_ms: float) -> Factor:
    """Return the highest factor of a price at any moment from one Unix ms to another."""
    moments = [
        since_ms,
        *(edge for edge in _edges(hours, since_ms, until_ms) if since_ms <= edge <= until_ms),
    ]
    return max([factor_at(hours, moment) for moment in moments], key=lambda factor: Fraction(*factor))


def overlaps(spans: Sequence[PriceSpan]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of each two spans that share a moment of some week."""
    for (first, span), (second, other) in combinations(enumerate(spans), 2):
        if any(_meet(span, other, shift) for shift in _shifts(span.time_zone, other.time_zone)):
            yield first, second


def _is_on(span: PriceSpan, day: date) -> bool:
    return day.isoweekday() in span.days and day.toordinal() not in span.excepted


def _edges(hours: PriceHours, since_ms: float, until_ms: float) -> Iterator[float]:
    """Yield moments at which the factor may change within a time: edges of spans and changes of clocks."""
    for span in hours.spans:
        zone = _zone(span.time_zone)
        day = datetime.fromtimestamp(since_ms // 1000, zone).date() - _ONE_DAY
        last = datetime.fromtimestamp(until_ms // 1000, zone).date() + _ONE_DAY
        while day <= last:
            midnight = datetime.combine(day, datetime.min.time(), zone)
            for minute in (span.since, span.until):
                clock = midnight + timedelta(minutes=minute)
                yield from (clock.replace(fold=fold).timestamp() * 1000 for fold in (0, 1))
            yield from _changes(zone, midnight)
            day += _ONE_DAY


def _changes(zone: TimeZone, midnight: datetime) -> Iterator[float]:
    """Yield the quarter hours from a midnight on of a day on which a zone's clocks change."""
    since_ms = int(midnight.timestamp()) * 1000
    if offset_at(zone, since_ms) != offset_at(zone, since_ms + DAY_MS):
        yield from (since_ms + quarter * 15 * MINUTE_MS for quarter in range(100))


def _meet(span: PriceSpan, other: PriceSpan, shift: int) -> bool:
    """Return whether two spans share a minute of a week, where the other's clocks are `shift` minutes ahead."""
    for since, until in _weekly(span):
        for start, end in _weekly(other):
            begins = (start - shift - since) % _WEEK_MINUTES
            if begins < until - since or begins + end - start > _WEEK_MINUTES:
                return True
    return False


def _weekly(span: PriceSpan) -> Iterable[tuple[int, int]]:
    """Yield the minutes of a week at which a span begins and ends; an end may lie in the next week."""
    length = (span.until - span.since) % DAY_MINUTES or DAY_MINUTES
    for day in span.days:
        since = (day - 1) * DAY_MINUTES + span.since
        yield since, since + length


@lru_cache(_ZONES_MAX)
def _shifts(zone: str, other: str) -> frozenset[int]:
    """Return by how many minutes clocks of another zone are ahead of those of a zone, on any day."""
    if zone == other:
        return frozenset((0,))
    first, second = _zone(zone), _zone(other)
    days = (_COMPARED_SINCE_MS + day * DAY_MS for day in range(_COMPARED_DAYS))
    return frozenset((offset_at(second, at) - offset_at(first, at)) // MINUTE_MS for at in days)


@lru_cache(_ZONES_MAX)
def _zone(name: str) -> TimeZone:
    return TimeZone(name)
