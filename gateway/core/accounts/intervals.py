"""The intervals of budgets and of plans: one row of facts for each. Pure.

Months, quarters and years begin on the anchor day, or on the last day of a shorter month. Weeks begin on
weekday `anchor_day`, 1 being Monday. Days are those of the zone's clocks, with 23 or 25 hours when these
change. An hour lasts from one full hour of these clocks to the next.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NamedTuple

from gateway.core.times import DAY_MS, EPOCH, HOUR_MS, MILLISECOND, TimeZone, is_zone, moment_of, offset_at

DAYS_OF_WEEK: Final = 7
DAYS_OF_MONTH: Final = 31


@dataclass(frozen=True, slots=True)
class Interval:
    """One interval of a budget.

    `per` is said behind an amount. `period` is its name in plans of tokens and in vendors' APIs; empty where
    these have none. `look_back_ms` is the shortest time from which the pace of a window is taken. `past` is
    the number of past days for which the console counts refusals, and the unit of the report; None for no
    count. `anchor_max` is the largest anchor day, 1 without a choice. `days` or `months` are the length, 0
    for an hour and for an endless interval. `durations` are LiteLLM's spellings.
    """

    name: str
    per: str
    look_back_ms: int
    period: str = ""
    past: tuple[int, str] | None = None
    anchor_max: int = 1
    days: int = 0
    months: int = 0
    durations: tuple[str, ...] = ()

    @property
    def is_endless(self) -> bool:
        return self.name == TOTAL


HOUR, DAY, WEEK, MONTH, QUARTER, YEAR, TOTAL = (
    "hour", "day", "week", "month", "quarter", "year", "total",
)  # fmt: skip
INTERVALS: Final = {
    interval.name: interval
    for interval in (
        Interval(HOUR, "an hour", HOUR_MS // 6, past=(7, "hour"), durations=("1h",)),
        Interval(DAY, "a day", 3 * HOUR_MS, "daily", (7, "day"), days=1, durations=("24h", "1d")),
        Interval(WEEK, "a week", DAY_MS, "weekly", (7, "none"), DAYS_OF_WEEK, days=7, durations=("7d", "1w")),
        Interval(
            MONTH,
            "a month",
            7 * DAY_MS,
            "monthly",
            (30, "none"),
            DAYS_OF_MONTH,
            months=1,
            durations=("30d", "1mo"),
        ),
        Interval(QUARTER, "a quarter", 7 * DAY_MS, anchor_max=DAYS_OF_MONTH, months=3),
        Interval(YEAR, "a year", 7 * DAY_MS, anchor_max=DAYS_OF_MONTH, months=12),
        Interval(TOTAL, "in all", 7 * DAY_MS),
    )
}
# Those that plans of tokens and vendors' APIs have, by their names there.
PERIODS: Final = {interval.period: interval for interval in INTERVALS.values() if interval.period}


def window_bounds(interval: str, time_zone: str, anchor_day: int, at_ms: int) -> tuple[int, int, int]:
    """Return start and end of the window at a time, and the end of the next window (Unix ms; 0 is never).

    Raise UnknownZone for an unknown zone.
    """
    facts = INTERVALS[interval]
    if facts.is_endless:
        return 0, 0, 0
    zone = TimeZone(time_zone)
    start, next_ = _window(facts, zone, anchor_day, at_ms)
    return start, next_, _window(facts, zone, anchor_day, next_)[1]


def wrong_calendar(interval: str, time_zone: str, anchor_day: int | None) -> Iterator[tuple[str, str]]:
    """Yield (field, fault) if the anchor day or the zone does not fit the interval of a budget or a plan."""
    facts = INTERVALS.get(interval) or PERIODS.get(interval)
    anchor_max = facts.anchor_max if facts is not None else 1
    if anchor_max == DAYS_OF_WEEK and anchor_day is not None and anchor_day > anchor_max:
        yield "anchor_day", f"must be 1 (Monday) to {DAYS_OF_WEEK} (Sunday) where the interval is a week"
    if anchor_max == 1 and anchor_day not in {None, 1}:
        yield "anchor_day", f"there is none where it is {interval}: leave it out"
    if not is_zone(time_zone):
        yield "time_zone", "must be a name of the IANA's, such as Europe/Berlin"


def _window(interval: Interval, zone: TimeZone, anchor_day: int, at_ms: int) -> tuple[int, int]:
    """Return the start of the window at a time and the start of the next one (Unix ms)."""
    if interval.name == HOUR:
        start = _hour(zone, at_ms)
        # If clocks change by half an hour, one hour lasts 30 or 90 minutes.
        after = start + HOUR_MS // 2
        while (next_ := _hour(zone, after)) == start:
            after += HOUR_MS // 4
        return start, next_
    today = moment_of(at_ms).astimezone(zone).date()
    first, following = _days(interval, anchor_day, today)
    if first_moment(following, zone) <= at_ms:  # clocks were set back over midnight
        first, following = _days(interval, anchor_day, following)
    return first_moment(first, zone), first_moment(following, zone)


def _hour(zone: TimeZone, at_ms: int) -> int:
    """Return the last moment (Unix ms) up to `at_ms` at which the zone's clocks showed a full hour."""
    latest = 0
    for shift in {offset_at(zone, at_ms), offset_at(zone, at_ms - 2 * HOUR_MS)}:
        full = at_ms - (at_ms + shift) % HOUR_MS
        while offset_at(zone, full) != shift:
            full -= HOUR_MS
        latest = max(latest, full)
    return latest


def _days(interval: Interval, anchor_day: int, today: date) -> tuple[date, date]:
    """Return the first day of the window that contains `today`, and the first day of the next window."""
    if days := interval.days:
        start = today - timedelta(days=(today.isoweekday() - min(anchor_day, days)) % days)
        return start, start + timedelta(days=days)
    months = interval.months
    first = today.year * 12 + today.month - 1
    first -= first % months
    if today < _day(first, anchor_day):
        first -= months
    return _day(first, anchor_day), _day(first + months, anchor_day)


def _day(month: int, anchor_day: int) -> date:
    """Return the anchor day of a month, at most its last day. `month` counts from January of year 0."""
    year, month = month // 12, month % 12 + 1
    return date(year, month, min(anchor_day, calendar.monthrange(year, month)[1]))


def first_moment(day: date, zone: TimeZone) -> int:
    """Return the first moment of a day (Unix ms). If clocks skip midnight, it is the moment of the change."""
    return (datetime.combine(day, time(), zone).astimezone(UTC) - EPOCH) // MILLISECOND


class LastMonth(NamedTuple):
    """The last month that is over in a time zone: the day after it, and the moment since when it is over."""

    zone: str
    until: date
    over: datetime


def last_months(zones: Iterable[str], now: datetime) -> list[LastMonth]:
    """Return the last months that are over in these zones, and in UTC too; one that is unknown by now counts as UTC."""
    utc, months = TimeZone("UTC"), list[LastMonth]()
    for name in zones:
        zone = TimeZone(name) if is_zone(name) else utc
        until = min(now.astimezone(clock).date() for clock in (zone, utc)).replace(day=1)
        over_ms = max(first_moment(until, clock) for clock in (zone, utc))
        months.append(LastMonth(name, until, moment_of(over_ms)))
    return months
