"""Queries of usage: their groups, sums, and the roll-ups that answer them.

Pure. A report reads the largest roll-ups within its time, so that it reads few rows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from gateway.core.accounts.tags import tag_in

# The groups of a report by name, with their columns.
GROUPS: Final = {
    "organization": "organization_id",
    "tenant": "tenant_id",
    "user": "user_id",
    "api_key": "api_key_id",
    "project": "project_id",
    "service": "service_id",
    "model": "model",
    "group": "group_id",
}
# The group and column of all tags of a call.
TAGS: Final = "tags"
# A call is in several groups, or in none: rows of groups do not add up. No roll-up has them.
BY_CALL: Final = "group_id"
# The value for calls without a project, where null would mean something else. Other ids use 0.
NO_PROJECT: Final = -1
# Names beyond the number that is counted separately in a day.
OTHER: Final = "other"
OTHER_PROJECTS: Final = -2
DIMENSIONS: Final = (
    "organization_id", "start", "tenant_id", "api_key_id", "user_id", "project_id", "service_id", "model",
    "currency", "tags",
)  # fmt: skip
# Those of the roll-ups of all calls; calls with tags are in roll-ups of their own besides.
UNTAGGED: Final = DIMENSIONS[:-1]


class RollupLevel(NamedTuple):
    """One level of the roll-ups: rows per `unit` of time, in which `whole` columns are summed up."""

    unit: str
    whole: tuple[str, ...] = ()


# Roll-ups without people have fewer rows, those by key or model still fewer.
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
# The spans of calls with tags.
TAG_SPANS: Final = ("hour", "day")
# Roll-ups of a unit, those with fewest rows first.
_OF_UNIT: Final = {"hour": ("model_hour", "team_hour", "hour"), "day": ("team_day", "key_day", "day")}

_LENGTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
# With this limit of rows a query without groups is read in one statement.
ROWS_OF_ONE: Final = 10_000
# A week's first half ends with its Wednesday.
_HALF_DAYS = 3


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A query of calls from `since` to `until` (exclusive), by `groups` and `interval`.

    Both times are whole hours in UTC. `filters` are values by column. `only` limits the result to these
    values of the groups. At most `rows_max` rows are returned, after the first `skip` ones of the first
    interval.
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
        """The columns that must be stored separately, because rows are grouped or filtered by them."""
        return frozenset({*self.filters, *map(column_of, self.groups)})

    @property
    def tags(self) -> frozenset[str]:
        """The columns of tags (`tag:NAME`, or `tags` for all) by which rows are grouped or filtered."""
        return frozenset(name for name in self.apart if name == TAGS or tag_in(name))

    @property
    def by_call(self) -> bool:
        """Whether calls are read one by one, since no roll-up has what they are grouped or filtered by."""
        return BY_CALL in self.apart

    @property
    def people(self) -> bool:
        """Whether rows are grouped or filtered by users or API keys."""
        return not self.apart.isdisjoint(PEOPLE)


def column_of(group: str) -> str:
    """Return the column of a group; a tag's has its name, as each organization declares others."""
    return GROUPS.get(group, group)


def following(asked: UsageQuery, rows: Sequence[Mapping[str, object]]) -> UsageQuery:
    """Return the query for the rows after a page of results, `rows`.

    It starts at the interval of the page's last row, and skips the rows of that interval on the page.
    """
    last = rows[-1]["start"]
    assert isinstance(last, datetime)
    since = max(asked.since, last)
    count = sum(row["start"] == last for row in rows) + (asked.skip if since == asked.since else 0)
    return replace(asked, since=since, skip=count)


class ReportPiece(NamedTuple):
    """A part of a report's time: rows of the roll-up `span` starting from `since` to `until` (exclusive)."""

    span: str
    since: datetime
    until: datetime


def pieces(asked: UsageQuery) -> list[ReportPiece]:
    """Return the roll-ups (pre-summed tables) to read for the queried time; no hour is in two of them."""
    if asked.interval == "hour":
        return [ReportPiece(span_of(asked, "hour"), asked.since, asked.until)]
    report_pieces: list[ReportPiece] = []
    weeks = asked.people and not asked.tags  # calls with tags are summed by hours and days
    for unit, since, until in _units(asked.since, asked.until, asked.interval, weeks=weeks):
        span = span_of(asked, unit)
        if report_pieces and report_pieces[-1].span == span and report_pieces[-1].until == since:
            report_pieces[-1] = report_pieces[-1]._replace(until=until)
        else:
            report_pieces.append(ReportPiece(span, since, until))
    return report_pieces


def span_of(asked: UsageQuery, unit: str) -> str:
    """Return the name of the smallest roll-up for a `unit` of time that has all columns of the query."""
    return next(span for span in _OF_UNIT.get(unit, (unit,)) if asked.apart.isdisjoint(SPANS[span].whole))


def starts(asked: UsageQuery) -> Iterator[datetime]:
    """Yield the start of each interval that overlaps the queried time."""
    at = start_of(asked.interval, asked.since)
    while at < asked.until:
        yield at
        at = _after(at, asked.interval)


def end_of(unit: str, now: datetime) -> datetime:
    """Return the end of the current hour, day, week or month in UTC."""
    return _after(start_of(unit, now.astimezone(UTC)), unit)


def hourly_parts(asked: UsageQuery) -> dict[str, datetime]:
    """Return the parameters of a query that only hourly roll-ups can answer, each with a time.

    They are an interval of hours, and a start or end within a day.
    """
    if asked.interval == "hour":
        return {"interval": asked.since}
    ends = {"from": asked.since, "to": asked.until}
    return {name: at for name, at in ends.items() if at != start_of("day", at)}


def in_parts(asked: UsageQuery) -> Generator[UsageQuery, int, None]:
    """Yield the query for successive parts of its time, until the caller has enough rows for a page.

    The caller sends the number of rows that a part had. The next part has as many intervals as will
    probably fill the page, but at most twice as many as the last.
    """
    # A page is seldom filled by few groups: then one statement costs less than several.
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
    """Split a span of time into the fewest whole units; yield (unit, start, end) in order.

    No unit is longer than `interval`. `weeks` allows months, weeks and half weeks. No week crosses the
    border of a month that is read whole, or that is a group of the result.
    """
    units = ("month", "week", "half_week", "day", "hour") if weeks and interval != "day" else ("day", "hour")
    at = since
    while at < until:
        if interval == "month":
            end = min(until, _after(start_of("month", at), "month"))
        else:
            # A whole month is one row, so no week may cross its first day.
            month = at if at == start_of("month", at) else _after(start_of("month", at), "month")
            end = month if at < month and _after(month, "month") <= until else until
        unit = next(
            unit for unit in units if unit == "hour" or (start_of(unit, at) == at and _after(at, unit) <= end)
        )
        after = _after(at, unit)
        yield unit, at, after
        at = after


def start_of(unit: str, at: datetime) -> datetime:
    """Return the start, in UTC, of the hour, day, half week, week or month that contains a time."""
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
    """Return the end of `count` units that begin at `start`."""
    if unit == "month":
        months = start.month - 1 + count
        return start.replace(year=start.year + months // 12, month=1 + months % 12)
    if unit == "half_week":
        return start + timedelta(days=_HALF_DAYS if start.weekday() < _HALF_DAYS else 7 - _HALF_DAYS)
    return start + count * _LENGTHS[unit]
