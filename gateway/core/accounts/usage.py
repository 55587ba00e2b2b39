"""A question about usage: its groups, its sums, and its roll-up.

Pure. A report reads the largest roll-ups that lie within its time, so that it reads few rows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
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
# Those beyond the number counted each by itself in a day.
OTHER: Final = "other"
OTHER_PROJECTS: Final = -2
DIMENSIONS: Final = (
    "organization_id", "start", "tenant_id", "api_key_id", "user_id", "project_id", "service_id", "model",
    "currency",
)  # fmt: skip
SUMS: Final = (
    "requests", "refused", "input", "cache_read", "cache_write", "output", "reasoning", "tokens", "credits",
    "units", "cost", "estimated", "unpriced", "cache_write_1h",
)  # fmt: skip


class RollupLevel(NamedTuple):
    """One level of the roll-ups: rows of a `unit` of time, which do not tell `whole` columns apart."""

    unit: str
    whole: tuple[str, ...] = ()


# A team's rows are few, a key's and a model's are fewer still.
PEOPLE: Final = ("api_key_id", "user_id")
SPANS: Final = {
    "hour": RollupLevel("hour"),
    "day": RollupLevel("day"),
    "half_week": RollupLevel("half_week"),
    "week": RollupLevel("week"),
    "month": RollupLevel("month"),
    "team_hour": RollupLevel("hour", PEOPLE),
    "team_day": RollupLevel("day", PEOPLE),
    "key_day": RollupLevel("day", ("user_id", "project_id")),
    "model_hour": RollupLevel("hour", ("tenant_id", *PEOPLE, "project_id")),
}
# Those of a unit, the ones with fewest rows first.
_OF_UNIT: Final = {"hour": ("model_hour", "team_hour", "hour"), "day": ("team_day", "key_day", "day")}

_LENGTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
# As many rows of one group are a page of their own.
ROWS_OF_ONE: Final = 10_000
# A week's first half ends with its Wednesday.
_HALF_DAYS = 3


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Calls from `since` to `until` (not included), by `groups` and `interval`.

    Both are whole hours, in UTC. `filters` are values by column; `only` are values of the groups, where not
    all groups are told. At most `rows_max` rows are told, after the first `skip` ones of the first interval.
    """

    since: datetime
    until: datetime
    interval: str
    groups: tuple[str, ...]
    filters: Mapping[str, object]
    rows_max: int
    skip: int = 0
    only: tuple[tuple[object, ...], ...] = ()

    @property
    def apart(self) -> frozenset[str]:
        """The columns that rows are grouped or filtered by."""
        return frozenset({*self.filters, *(GROUPS[group] for group in self.groups)})

    @property
    def people(self) -> bool:
        """Whether it groups by users or keys."""
        return not self.apart.isdisjoint(PEOPLE)


def following(asked: UsageQuery, told: Sequence[Mapping[str, object]]) -> UsageQuery:
    """Return the query for rows behind the `told` ones: from the last one's interval on, without these."""
    last = told[-1]["start"]
    assert isinstance(last, datetime)
    since = max(asked.since, last)
    count = sum(row["start"] == last for row in told) + (asked.skip if since == asked.since else 0)
    return replace(asked, since=since, skip=count)


class ReportPiece(NamedTuple):
    """A part of a report's time: the rows of `span` that start from `since` to `until` (not included)."""

    span: str
    since: datetime
    until: datetime


def pieces(asked: UsageQuery) -> list[ReportPiece]:
    """Return the roll-ups that make up the time that is asked for, each hour of it once."""
    if asked.interval == "hour":
        return [ReportPiece(span_of(asked, "hour"), asked.since, asked.until)]
    found: list[ReportPiece] = []
    for unit, since, until in _units(asked.since, asked.until, asked.interval, weeks=asked.people):
        span = span_of(asked, unit)
        if found and found[-1].span == span and found[-1].until == since:
            found[-1] = found[-1]._replace(until=until)
        else:
            found.append(ReportPiece(span, since, until))
    return found


def span_of(asked: UsageQuery, unit: str) -> str:
    """Return the span of a unit that has the fewest rows, and tells apart what is asked for."""
    return next(span for span in _OF_UNIT.get(unit, (unit,)) if asked.apart.isdisjoint(SPANS[span].whole))


def starts(asked: UsageQuery) -> Iterator[datetime]:
    """Yield the start of each interval within the queried time, or reaching into it."""
    at = start_of(asked.interval, asked.since)
    while at < asked.until:
        yield at
        at = _after(at, asked.interval)


def end_of(unit: str, now: datetime) -> datetime:
    """Return when the hour, day, week or month ends that it is now, in UTC."""
    return _after(start_of(unit, now.astimezone(UTC)), unit)


def hourly_parts(asked: UsageQuery) -> dict[str, datetime]:
    """Return parameters that ask for single hours, each with a time; the hours are of its day, or after."""
    if asked.interval == "hour":
        return {"interval": asked.since}
    ends = {"from": asked.since, "to": asked.until}
    return {name: at for name, at in ends.items() if at != start_of("day", at)}


def in_parts(asked: UsageQuery) -> Generator[UsageQuery, int, None]:
    """Yield the query by parts of its time, so that a page is filled with few more rows read than it has.

    Send the rows that a part had, and the next part has as many intervals as likely fill the page, twice as
    many at most; send nothing, and it has twice as many.
    """
    # Few groups fill a page seldom: one statement costs less than several.
    if asked.interval == "none" or asked.only or (not asked.groups and asked.rows_max >= ROWS_OF_ONE):
        yield asked
        return
    wanted, at, count, told, begun = asked.rows_max + asked.skip, asked.since, 1, 0, 0
    while at < asked.until:
        end = min(asked.until, _after(start_of(asked.interval, at), asked.interval, count))
        told += (yield replace(asked, since=at, until=end)) or 0
        at, begun, count = end, begun + count, count * 2
        if told:
            count = max(1, min(count, -(-(wanted - told) * begun // told)))


def _units(
    since: datetime, until: datetime, interval: str, *, weeks: bool
) -> Iterator[tuple[str, datetime, datetime]]:
    """Yield a span as the fewest whole units, in the order of time; none is longer than the interval.

    No week or half week reaches into a month that is whole, or beyond a month that is a group.
    """
    units = ("month", "week", "half_week", "day", "hour") if weeks and interval != "day" else ("day", "hour")
    at = since
    while at < until:
        if interval == "month":
            end = min(until, _after(start_of("month", at), "month"))
        else:
            # A whole month is one row where a week over its first day would leave days of it.
            month = at if at == start_of("month", at) else _after(start_of("month", at), "month")
            end = month if at < month and _after(month, "month") <= until else until
        unit = next(
            unit for unit in units if unit == "hour" or (start_of(unit, at) == at and _after(at, unit) <= end)
        )
        after = _after(at, unit)
        yield unit, at, after
        at = after


def start_of(unit: str, at: datetime) -> datetime:
    """Return when the unit began in which a moment is, in UTC."""
    hour = at.replace(minute=0, second=0, microsecond=0)
    match unit:
        case "hour":
            return hour
        case "week":
            return hour.replace(hour=0) - timedelta(days=at.weekday())
        case "half_week":
            passed = at.weekday() - (_HALF_DAYS if at.weekday() >= _HALF_DAYS else 0)
            return hour.replace(hour=0) - timedelta(days=passed)
        case "month":
            return hour.replace(day=1, hour=0)
        case _:
            return hour.replace(hour=0)


def _after(start: datetime, unit: str, count: int = 1) -> datetime:
    """Return the end of so many units from the start of the first."""
    if unit == "month":
        months = start.month - 1 + count
        return start.replace(year=start.year + months // 12, month=1 + months % 12)
    if unit == "half_week":
        return start + timedelta(days=_HALF_DAYS if start.weekday() < _HALF_DAYS else 7 - _HALF_DAYS)
    return start + count * _LENGTHS[unit]
