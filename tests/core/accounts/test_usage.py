"""Which roll-ups a report reads: each hour of its time once, in as few rows as there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.usage import SPANS, UsageQuery, hours_asked, in_parts, pieces

HOUR = timedelta(hours=1)
MOMENTS = st.integers(0, 24 * 800).map(lambda hours: datetime(2027, 11, 1, tzinfo=UTC) + hours * HOUR)
# On which days a row of a unit may start, Monday being 0.
WEEKDAYS = {"day": range(7), "half_week": (0, 3), "week": (0,)}
INTERVALS = ("none", "hour", "day", "month")


def asked(since: datetime, until: datetime, interval: str = "none", *groups: str) -> UsageQuery:
    return UsageQuery(since, until, interval, groups, {}, 100)


def starts(unit: str, since: datetime, until: datetime) -> list[datetime]:
    """When rows of a unit start, told by the calendar, hour by hour."""
    hours = [since + n * HOUR for n in range(int((until - since) / HOUR))]
    return [
        at
        for at in hours
        if unit == "hour"
        or (at.hour == 0 and at.weekday() in WEEKDAYS.get(unit, ()))
        or (unit == "month" and (at.day, at.hour) == (1, 0))
    ]


def hours_of(unit: str, start: datetime) -> list[datetime]:
    """The hours a row of a unit is of."""
    if unit == "month":
        count = int(((start + 32 * 24 * HOUR).replace(day=1) - start) / HOUR)
    elif unit == "half_week":
        count = 72 if start.strftime("%a") == "Mon" else 96
    else:
        count = {"hour": 1, "day": 24, "week": 168}[unit]
    return [start + n * HOUR for n in range(count)]


@given(st.tuples(MOMENTS, MOMENTS), st.sampled_from(INTERVALS), st.booleans())
def test_the_pieces_of_a_report_are_each_hour_of_its_time_once(
    ends: tuple[datetime, datetime], interval: str, people: bool
) -> None:
    since, until = min(ends), max(ends) + HOUR
    found: list[datetime] = []
    for piece in pieces(asked(since, until, interval, *(["user"] if people else []))):
        unit, whole = SPANS[piece.span]
        assert not people or "user_id" not in whole
        for start in starts(unit, piece.since, piece.until):
            found += hours_of(unit, start)
            # A row that began in another interval would be told in that one.
            if interval in ("day", "month"):
                ends_in = hours_of(unit, start)[-1]
                assert ends_in.month == start.month
                assert interval == "month" or ends_in.day == start.day
    assert found == [since + n * HOUR for n in range(int((until - since) / HOUR))]


@pytest.mark.parametrize(
    ("since", "until", "spans"),
    [
        ("2026-10-01", "2026-11-01", ["month"]),
        ("2026-10-13", "2026-11-12", ["day", "half_week", "week", "half_week"]),
        ("2026-09-30", "2026-12-02", ["day", "month", "day"]),
        ("2026-11-09", "2026-11-16", ["week"]),
        ("2026-11-10T05", "2026-11-10T07", ["hour"]),
        ("2026-11-10T22", "2026-11-12", ["hour", "day"]),
    ],
)
def test_the_longest_rows_are_read_that_lie_within_a_time(since: str, until: str, spans: list[str]) -> None:
    ends = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (since, until)]
    assert [piece.span for piece in pieces(asked(*ends, "none", "user", "model"))] == spans


def test_what_names_nobody_reads_the_rows_of_teams() -> None:
    since = datetime(2026, 10, 1, tzinfo=UTC)
    [piece] = pieces(asked(since, since + 365 * 24 * HOUR, "none", "tenant", "project", "model"))
    assert piece == ("team_day", since, since + 365 * 24 * HOUR)
    report = UsageQuery(since, since + HOUR, "none", ("model",), {"user_id": 4}, 100)
    assert [piece.span for piece in pieces(report)] == ["hour"]


@pytest.mark.parametrize(
    ("interval", "groups", "span"),
    [
        ("hour", (), "model_hour"),
        ("hour", ("organization", "service", "model"), "model_hour"),
        ("hour", ("tenant", "model"), "team_hour"),
        ("hour", ("api_key",), "hour"),
        ("day", ("model",), "team_day"),
        ("day", ("tenant", "api_key", "model"), "key_day"),
        ("day", ("api_key", "project"), "day"),
        ("day", ("user",), "day"),
    ],
)
def test_the_rows_of_a_unit_are_the_fewest_that_tell_apart_what_is_asked_for(
    interval: str, groups: tuple[str, ...], span: str
) -> None:
    since = datetime(2026, 10, 13, tzinfo=UTC)
    assert pieces(asked(since, since + 48 * HOUR, interval, *groups)) == [(span, since, since + 48 * HOUR)]


def test_a_part_of_a_time_has_as_many_intervals_as_fill_the_page() -> None:
    since = datetime(2026, 10, 13, tzinfo=UTC)
    parts = in_parts(asked(since, since + 30 * 24 * HOUR, "day"))
    found, part = [], next(parts)
    while sum(found) < 19:
        found.append(int((part.until - part.since) / HOUR) // 24)
        part = parts.send(5 * found[-1])
    # A page is of a hundred rows, and a day has five of them.
    assert found == [1, 2, 4, 8, 5]


@given(st.tuples(MOMENTS, MOMENTS), st.sampled_from(INTERVALS))
def test_windows_of_a_report_follow_each_other_and_end_with_intervals(
    ends: tuple[datetime, datetime], interval: str
) -> None:
    report = asked(min(ends), max(ends) + HOUR, interval)
    found = list(in_parts(report))
    assert [found[0].since, *(each.until for each in found)] == [
        *(each.since for each in found),
        report.until,
    ]
    first = {"hour": 1, "day": 24, "month": 24 * 31, "none": 24 * 900}[interval]
    assert found[0].until - found[0].since <= first * HOUR
    for each in found[:-1]:
        assert interval == "hour" or each.until.hour == 0
        assert interval != "month" or each.until.day == 1
    assert len(found) <= 16


def test_a_report_of_thousands_of_years_of_hours_is_cut_at_once() -> None:
    report = asked(datetime(1970, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC), "hour")
    assert len(list(in_parts(report))) < 30


@given(st.tuples(MOMENTS, MOMENTS), st.sampled_from(INTERVALS), st.booleans(), MOMENTS)
def test_what_asks_for_hours_is_named_whenever_hours_before_a_month_are_read(
    ends: tuple[datetime, datetime], interval: str, people: bool, kept: datetime
) -> None:
    report = asked(min(ends), max(ends) + HOUR, interval, *(["user"] if people else []))
    month = kept.replace(day=1, hour=0)
    hours = [piece for piece in pieces(report) if SPANS[piece.span].unit == "hour"]
    named = [name for name, at in hours_asked(report).items() if at < month]
    assert bool(named) == any(piece.since < month for piece in hours)
