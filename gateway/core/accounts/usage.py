"""What is asked of usage: by what it is grouped, what is added up, and from which of its roll-ups.

Pure. A report reads the largest roll-ups that lie within its time, so that it reads few rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

# The groups of a report, each with the column it stands for.
GROUPS: Final = {
    "organization": "organization_id",
    "tenant": "tenant_id",
    "user": "user_id",
    "api_key": "api_key_id",
    "project": "project_id",
    "service": "service_id",
    "model": "model",
}
# What a call has none of, where a null cannot be told from another: nobody's is 0, no project is -1.
NO_PROJECT: Final = -1
# Those beyond how many are told apart of a day.
OTHER: Final = "other"
OTHER_PROJECTS: Final = -2
DIMENSIONS: Final = (
    "organization_id", "start", "tenant_id", "api_key_id", "user_id", "project_id", "service_id", "model",
    "currency",
)  # fmt: skip
SUMS: Final = (
    "requests", "refused", "input", "cache_read", "cache_write", "output", "reasoning", "tokens", "credits",
    "units", "cost", "estimated", "unpriced",
)  # fmt: skip
# What a team's rows do not tell apart: there are few of them, whoever calls.
PEOPLE: Final = ("api_key_id", "user_id")
# The spans of roll-ups, each with the unit of its time and whether it tells people apart.
SPANS: Final = {
    "hour": ("hour", True),
    "day": ("day", True),
    "week": ("week", True),
    "month": ("month", True),
    "team_hour": ("hour", False),
    "team_day": ("day", False),
}

HOUR_MS: Final = 3_600_000
_LENGTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Calls from `since` to `until` (not included), told apart by `groups` and `interval`.

    Both are whole hours, in UTC. `filters` are values by column. At most `rows_max` rows are told, after the
    first `skip` ones of the first interval.
    """

    since: datetime
    until: datetime
    interval: str
    groups: tuple[str, ...]
    filters: Mapping[str, object]
    rows_max: int
    skip: int = 0

    @property
    def people(self) -> bool:
        """Whether users or keys are told apart."""
        return bool({*self.filters, *(GROUPS[group] for group in self.groups)} & set(PEOPLE))


def following(asked: UsageQuery, told: Sequence[Mapping[str, object]]) -> UsageQuery:
    """What asks for the rows behind those that were told: from the last one's interval on, less these."""
    last = told[-1]["start"]
    assert isinstance(last, datetime)
    since = max(asked.since, last)
    count = sum(row["start"] == last for row in told) + (asked.skip if since == asked.since else 0)
    return replace(asked, since=since, skip=count)


class Piece(NamedTuple):
    """A part of a report's time: the rows of `span` that start from `since` to `until` (not included)."""

    span: str
    since: datetime
    until: datetime


def pieces(asked: UsageQuery) -> list[Piece]:
    """The roll-ups that make up the time that is asked for, each hour of it once."""
    if asked.interval == "hour":
        return [Piece("hour" if asked.people else "team_hour", asked.since, asked.until)]
    found: list[Piece] = []
    for unit, since, until in _units(asked.since, asked.until, asked.interval, weeks=asked.people):
        span = unit if asked.people else f"team_{unit}"
        if found and found[-1].span == span and found[-1].until == since:
            found[-1] = found[-1]._replace(until=until)
        else:
            found.append(Piece(span, since, until))
    return found


def starts(asked: UsageQuery) -> Iterator[datetime]:
    """When each interval begins that lies in the time that is asked for, or reaches into it."""
    at = _floor(asked.since, asked.interval)
    while at < asked.until:
        yield at
        at = _after(at, asked.interval)


def end_of(unit: str, now: datetime) -> datetime:
    """When the hour, day, week or month ends that it is now, in UTC."""
    return _after(_floor(now.astimezone(UTC), unit), unit)


def hours_asked(asked: UsageQuery) -> dict[str, datetime]:
    """What of a report asks for single hours, each with a time: all of them are of its day, or after it."""
    if asked.interval == "hour":
        return {"interval": asked.since}
    ends = {"from": asked.since, "to": asked.until}
    return {name: at for name, at in ends.items() if at != _floor(at, "day")}


def windows(asked: UsageQuery) -> Iterator[UsageQuery]:
    """The same by parts of its time, each of twice as many intervals: what fills a page reads little more."""
    if asked.interval == "none":
        yield asked
        return
    at, count = asked.since, 1
    while at < asked.until:
        end = min(asked.until, _after(_floor(at, asked.interval), asked.interval, count))
        yield replace(asked, since=at, until=end)
        at, count = end, count * 2


def _units(
    since: datetime, until: datetime, interval: str, *, weeks: bool
) -> Iterator[tuple[str, datetime, datetime]]:
    """A span in as few whole units as there are, in the order of time; none is longer than the interval.

    Weeks are left out of months that are whole, and of months that are told apart.
    """
    units = ("month", "week", "day", "hour") if weeks and interval != "day" else ("day", "hour")
    at = since
    while at < until:
        if interval == "month":
            end = min(until, _after(_floor(at, "month"), "month"))
        else:
            # A whole month is one row where a week over its first day would leave days of it.
            month = at if at == _floor(at, "month") else _after(_floor(at, "month"), "month")
            end = month if at < month and _after(month, "month") <= until else until
        unit = next(
            unit for unit in units if unit == "hour" or (_floor(at, unit) == at and _after(at, unit) <= end)
        )
        after = _after(at, unit)
        yield unit, at, after
        at = after


def _floor(at: datetime, unit: str) -> datetime:
    """When the unit began in which a moment is, in UTC."""
    hour = at.replace(minute=0, second=0, microsecond=0)
    match unit:
        case "hour":
            return hour
        case "week":
            return hour.replace(hour=0) - timedelta(days=at.weekday())
        case "month":
            return hour.replace(day=1, hour=0)
        case _:
            return hour.replace(hour=0)


def _after(start: datetime, unit: str, count: int = 1) -> datetime:
    """When so many units end of which the first one begins then."""
    if unit == "month":
        months = start.month - 1 + count
        return start.replace(year=start.year + months // 12, month=1 + months % 12)
    return start + count * _LENGTHS[unit]
