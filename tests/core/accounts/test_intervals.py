"""Intervals: their windows in every zone, and the tables that list them."""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.intervals import (
    DAY,
    INTERVALS,
    MONTH,
    PERIODS,
    QUARTER,
    WEEK,
    YEAR,
    window_bounds,
    wrong_calendar,
)  # fmt: skip
from tests.search import examples
from tests.tree import ROOT

# Clocks that change by an hour, by half of one, at midnight, below the equator, never; and a day nobody had.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Cairo",
    "America/Havana", "Asia/Kathmandu", "Pacific/Apia", "Asia/Beirut", "America/Nuuk", "Antarctica/Troll",
)  # fmt: skip
QUARTER_HOUR_MS = 15 * 60_000


def local(zone: str, at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo(zone))


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def window_named(interval: str, zone: str, anchor: int, at_ms: int) -> tuple[int, ...]:
    """What a calendar on the wall calls the window of a moment: a later one has a higher name."""
    now = local(zone, at_ms)
    if interval == "hour":
        return (at_ms - at_ms % QUARTER_HOUR_MS,)
    if interval == "day":
        return now.year, now.month, now.day
    if interval == "week":
        monday = now.date() - timedelta(days=now.weekday())
        first = monday + timedelta(days=anchor - 1)
        return ((first if first <= now.date() else first - timedelta(days=7)).toordinal(),)
    months = {"month": tuple(range(1, 13)), "quarter": (1, 4, 7, 10), "year": (1,)}[interval]
    starts = [
        (year, month, min(anchor, monthrange(year, month)[1]))
        for year in (now.year - 1, now.year)
        for month in months
    ]
    return max(start for start in starts if start <= (now.year, now.month, now.day))


def first_of(interval: str, zone: str, anchor: int, at_ms: int) -> int:
    """The first quarter of an hour in which the calendar says the same: found by asking it often."""
    grid = range(at_ms // QUARTER_HOUR_MS - 380 * 96, at_ms // QUARTER_HOUR_MS + 1)
    name = window_named(interval, zone, anchor, at_ms)
    found = bisect_left(grid, name, key=lambda at: window_named(interval, zone, anchor, at * QUARTER_HOUR_MS))
    return grid[found] * QUARTER_HOUR_MS


MOMENTS = st.integers(ms("2012-02-01T00:00:00Z"), ms("2036-12-31T23:59:59Z"))


@settings(max_examples=examples(300))
@given(
    st.sampled_from([DAY, WEEK, MONTH, QUARTER, YEAR]), st.sampled_from(ZONES), st.integers(1, 31), MOMENTS
)
@example("day", "America/Sao_Paulo", 1, ms("2018-11-04T03:30:00Z"))
@example("month", "Pacific/Apia", 30, ms("2011-12-30T12:00:00Z") + 366 * 86_400_000)
@example("month", "Europe/Berlin", 31, ms("2026-02-28T12:00:00Z"))
@example("quarter", "Europe/Berlin", 31, ms("2026-04-30T12:00:00Z"))
@example("year", "America/New_York", 29, ms("2026-01-28T12:00:00Z"))
def test_window_is_the_span_of_a_wall_calendar(interval: str, zone: str, anchor: int, at_ms: int) -> None:
    anchor = min(anchor, 7) if interval == "week" else anchor
    start, next_, after = window_bounds(interval, zone, anchor, at_ms)
    assert start <= at_ms < next_ < after
    assert start == first_of(interval, zone, anchor, at_ms)
    assert next_ == first_of(interval, zone, anchor, next_)
    assert window_named(interval, zone, anchor, next_ - 1) == window_named(interval, zone, anchor, at_ms)
    assert after == window_bounds(interval, zone, anchor, next_)[1]


@settings(max_examples=examples(300))
@given(st.sampled_from(ZONES), MOMENTS)
@example("Australia/Lord_Howe", ms("2026-04-04T15:10:00Z"))
@example("Australia/Lord_Howe", ms("2026-10-03T15:10:00Z"))
def test_hour_lasts_between_full_hours_of_the_clocks(zone: str, at_ms: int) -> None:
    start, next_, after = window_bounds("hour", zone, 1, at_ms)
    assert start <= at_ms < next_ < after
    for edge in (start, next_, after):
        assert local(zone, edge).minute == local(zone, edge).second == 0
    for between in range(start + QUARTER_HOUR_MS, next_, QUARTER_HOUR_MS):
        assert local(zone, between).minute
        assert window_bounds("hour", zone, 1, between) == (start, next_, after)


def test_day_has_23_or_25_hours_when_clocks_change() -> None:
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)):
        start, next_, _ = window_bounds("day", "Europe/Berlin", 1, ms(f"{day}T12:00:00Z"))
        assert (next_ - start) / 3_600_000 == hours
        assert local("Europe/Berlin", start).isoformat()[:16] == f"{day}T00:00"


def test_day_that_a_zone_skipped_is_no_window() -> None:
    before = ms("2011-12-29T22:00:00-10:00")
    start, next_, after = window_bounds("day", "Pacific/Apia", 1, before)
    assert local("Pacific/Apia", next_).isoformat()[:10] == "2011-12-31"
    assert (next_ - start, after - next_) == (86_400_000, 86_400_000)


def test_window_ends_in_the_future_when_clocks_repeat_a_minute() -> None:
    """St. John's set its clocks back at a minute past midnight: it was Sunday, Saturday, and Sunday again."""
    again = ms("2010-11-07T03:00:00Z")  # 23:30 on Saturday, for the second time
    start, next_, after = window_bounds("day", "America/St_Johns", 1, again)
    assert start <= again < next_ < after


def test_anchor_beyond_a_month_is_its_last_day() -> None:
    for anchor in (29, 30, 31):
        start, next_, after = window_bounds("month", "UTC", anchor, ms("2026-02-10T00:00:00Z"))
        assert start == ms(f"2026-01-{anchor}T00:00:00Z")
        assert next_ == ms("2026-02-28T00:00:00Z")
        assert after == ms(f"2026-03-{anchor}T00:00:00Z")
    assert window_bounds("month", "UTC", 29, ms("2028-02-10T00:00:00Z"))[1] == ms("2028-02-29T00:00:00Z")


def test_quarters_and_years_begin_on_the_anchor_day_of_their_first_month() -> None:
    at = ms("2026-04-14T00:00:00Z")
    assert window_bounds("quarter", "UTC", 15, at)[:2] == (
        ms("2026-01-15T00:00:00Z"),
        ms("2026-04-15T00:00:00Z"),
    )
    assert window_bounds("year", "UTC", 15, at)[:2] == (
        ms("2026-01-15T00:00:00Z"),
        ms("2027-01-15T00:00:00Z"),
    )
    assert window_bounds("year", "UTC", 15, ms("2026-01-14T23:59:59Z"))[0] == ms("2025-01-15T00:00:00Z")


def test_total_has_no_end() -> None:
    assert window_bounds("total", "Europe/Berlin", 9, ms("2026-04-14T00:00:00Z")) == (0, 0, 0)


@pytest.mark.parametrize(
    ("interval", "zone", "anchor", "fields"),
    [
        ("monthly", "Europe/Berlin", 31, []),
        ("weekly", "UTC", 7, []),
        ("weekly", "UTC", None, []),
        ("daily", "Asia/Kolkata", 1, []),
        ("none", "UTC", None, []),
        ("weekly", "UTC", 8, ["anchor_day"]),
        ("daily", "UTC", 2, ["anchor_day"]),
        ("none", "Mars/Base", 31, ["anchor_day", "time_zone"]),
        ("monthly", "europe/berlin", 1, ["time_zone"]),
        ("monthly", "localtime", 1, ["time_zone"]),
        ("monthly", "../etc/passwd", 1, ["time_zone"]),
    ],
)
def test_wrong_calendar_names_anchor_day_and_zone(
    interval: str, zone: str, anchor: int | None, fields: list[str]
) -> None:
    assert [field for field, _ in wrong_calendar(interval, zone, anchor)] == fields


def test_tables_list_every_interval_of_budgets_and_plans() -> None:
    tables = (ROOT / "persistence/schema/tables.sql").read_text()
    listed = {
        column: set(re.findall(r"'(\w+)'", values))
        for column, values in re.findall(r'CHECK \("?(interval|reset_interval)"? IN \(([^)]+)\)\)', tables)
    }
    assert listed == {"interval": set(INTERVALS), "reset_interval": {*PERIODS, "none"}}
