"""Budgets: their windows in every zone, whom they match, what their accounts are called."""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.budgets import (
    DEFINED_WINDOW,
    FLAG_CUT,
    FLAG_ENFORCE,
    FLAG_MONEY,
    FLAG_TOKENS,
    INTERVALS,
    Budget,
    CallAttributes,
    account_of,
    accounts_of,
    bounds,
    defined,
    defined_until,
    is_of,
    shown,
)

# Clocks that change by an hour, by half of one, at midnight, below the equator, never; and a day nobody had.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Cairo",
    "America/Havana", "Asia/Kathmandu", "Pacific/Apia", "Asia/Beirut", "America/Nuuk", "Antarctica/Troll",
)  # fmt: skip
QUARTER_HOUR_MS = 15 * 60_000
BUDGET = Budget(7, "all", "money", 5_000_000_000, "month")
CALL = CallAttributes(3, 40, 2, "ada", 9, ("gpt-5-mini", "gpt-5"), "s-1")


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


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(INTERVALS[1:-1]), st.sampled_from(ZONES), st.integers(1, 31), MOMENTS)
@example("day", "America/Sao_Paulo", 1, ms("2018-11-04T03:30:00Z"))
@example("month", "Pacific/Apia", 30, ms("2011-12-30T12:00:00Z") + 366 * 86_400_000)
@example("month", "Europe/Berlin", 31, ms("2026-02-28T12:00:00Z"))
@example("quarter", "Europe/Berlin", 31, ms("2026-04-30T12:00:00Z"))
@example("year", "America/New_York", 29, ms("2026-01-28T12:00:00Z"))
def test_a_window_is_what_a_calendar_on_the_wall_says(
    interval: str, zone: str, anchor: int, at_ms: int
) -> None:
    anchor = min(anchor, 7) if interval == "week" else anchor
    start, next_, after = bounds(interval, zone, anchor, at_ms)
    assert start <= at_ms < next_ < after
    assert start == first_of(interval, zone, anchor, at_ms)
    assert next_ == first_of(interval, zone, anchor, next_)
    assert window_named(interval, zone, anchor, next_ - 1) == window_named(interval, zone, anchor, at_ms)
    assert after == bounds(interval, zone, anchor, next_)[1]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ZONES), MOMENTS)
@example("Australia/Lord_Howe", ms("2026-04-04T15:10:00Z"))
@example("Australia/Lord_Howe", ms("2026-10-03T15:10:00Z"))
def test_an_hour_is_from_one_full_hour_of_the_clocks_to_the_next(zone: str, at_ms: int) -> None:
    start, next_, after = bounds("hour", zone, 1, at_ms)
    assert start <= at_ms < next_ < after
    for edge in (start, next_, after):
        assert local(zone, edge).minute == local(zone, edge).second == 0
    for between in range(start + QUARTER_HOUR_MS, next_, QUARTER_HOUR_MS):
        assert local(zone, between).minute
        assert bounds("hour", zone, 1, between) == (start, next_, after)


def test_a_day_has_23_or_25_hours_where_clocks_change() -> None:
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)):
        start, next_, _ = bounds("day", "Europe/Berlin", 1, ms(f"{day}T12:00:00Z"))
        assert (next_ - start) / 3_600_000 == hours
        assert local("Europe/Berlin", start).isoformat()[:16] == f"{day}T00:00"


def test_a_day_nobody_had_is_no_window() -> None:
    before = ms("2011-12-29T22:00:00-10:00")
    start, next_, after = bounds("day", "Pacific/Apia", 1, before)
    assert local("Pacific/Apia", next_).isoformat()[:10] == "2011-12-31"
    assert (next_ - start, after - next_) == (86_400_000, 86_400_000)


def test_a_minute_that_was_told_twice_ends_no_window_in_the_past() -> None:
    """St. John's set its clocks back at a minute past midnight: it was Sunday, Saturday, and Sunday again."""
    again = ms("2010-11-07T03:00:00Z")  # 23:30 on Saturday, for the second time
    start, next_, after = bounds("day", "America/St_Johns", 1, again)
    assert start <= again < next_ < after


def test_an_anchor_beyond_a_month_is_its_last_day() -> None:
    for anchor in (29, 30, 31):
        start, next_, after = bounds("month", "UTC", anchor, ms("2026-02-10T00:00:00Z"))
        assert start == ms(f"2026-01-{anchor}T00:00:00Z")
        assert next_ == ms("2026-02-28T00:00:00Z")
        assert after == ms(f"2026-03-{anchor}T00:00:00Z")
    assert bounds("month", "UTC", 29, ms("2028-02-10T00:00:00Z"))[1] == ms("2028-02-29T00:00:00Z")


def test_quarters_and_years_begin_on_the_anchors_day_of_their_first_month() -> None:
    at = ms("2026-04-14T00:00:00Z")
    assert bounds("quarter", "UTC", 15, at)[:2] == (ms("2026-01-15T00:00:00Z"), ms("2026-04-15T00:00:00Z"))
    assert bounds("year", "UTC", 15, at)[:2] == (ms("2026-01-15T00:00:00Z"), ms("2027-01-15T00:00:00Z"))
    assert bounds("year", "UTC", 15, ms("2026-01-14T23:59:59Z"))[0] == ms("2025-01-15T00:00:00Z")


def test_a_total_has_no_end() -> None:
    assert bounds("total", "Europe/Berlin", 9, ms("2026-04-14T00:00:00Z")) == (0, 0, 0)
    assert defined_until([replace(BUDGET, interval="total")], ms("2026-04-14T00:00:00Z")) == 0


def test_definition_is_by_id_and_says_the_limit_of_the_moment() -> None:
    at = ms("2026-05-05T05:05:05Z")
    raised = Budget(9, "day", "tokens", 100, "day", raised_to=250, raised_until_ms=at + 1, cut=True)
    packed, size = defined([raised, replace(BUDGET, enforce=False)], at), DEFINED_WINDOW.size
    first, second = DEFINED_WINDOW.read(packed[:size]), DEFINED_WINDOW.read(packed[size:])
    assert (first["budget_id"], first["limit"], first["flags"]) == (7, 5_000_000_000, FLAG_MONEY)
    assert (second["budget_id"], second["limit"]) == (9, 250)
    assert second["flags"] == FLAG_TOKENS | FLAG_ENFORCE | FLAG_CUT
    assert (second["start"], second["next"], second["after"]) == bounds("day", "UTC", 1, at)
    assert defined_until([raised, BUDGET], at) == at + 1
    assert DEFINED_WINDOW.read(defined([raised], at + 1))["limit"] == 100
    assert defined_until([raised, BUDGET], at + 1) == ms("2026-05-06T00:00:00Z")


@pytest.mark.parametrize(
    ("selector", "matched"),
    [
        ({}, True),
        ({"tenant_id": 3, "api_key_id": 40, "service_id": 2, "user": "ada", "project_id": 9}, True),
        ({"tenant_id": 4}, False),
        ({"api_key_id": 41}, False),
        ({"service_id": 3}, False),
        ({"user": "Ada"}, False),
        ({"project_id": 0}, False),
        ({"model": "gpt-5"}, True),
        ({"model": "GPT-5-MINI"}, True),
        ({"model": "gpt-5-*"}, True),
        ({"model": "gpt"}, False),
        ({"model": "claude*"}, False),
        ({"model": "*"}, True),
    ],
)
def test_a_budget_is_about_calls_that_fit_all_it_names(selector: dict[str, Any], matched: bool) -> None:
    assert replace(BUDGET, **selector).matches(CALL) is matched


def test_what_a_call_does_not_name_fits_no_budget_that_names_one() -> None:
    silent = CallAttributes(3, 40, 2)
    named: list[dict[str, Any]] = [{"user": "ada"}, {"project_id": 0}, {"model": "*"}]
    for selector in named:
        assert not replace(BUDGET, **selector).matches(silent)


def test_nobodys_calls_share_one_account_of_each() -> None:
    each = replace(BUDGET, each="user")
    nobody = account_of(1, each, each.value_of(CallAttributes(3, 40, 2)))
    assert nobody == account_of(1, each, each.value_of(CallAttributes(3, 41, 5)))
    assert nobody != account_of(1, each, each.value_of(CALL))
    for kind, value in (("user", "ada"), ("key", "40"), ("project", "9"), ("session", "s-1"), ("", "")):
        assert replace(BUDGET, each=kind).value_of(CALL) == value


def test_an_account_is_named_by_selector_and_value_alone() -> None:
    alike = replace(BUDGET, id=8, unit="tokens", amount=1, interval="day")
    assert account_of(1, BUDGET) == account_of(1, alike)
    assert len(account_of(1, BUDGET)) == 16
    each = replace(BUDGET, each="user")
    named = account_of(1, each, "ada@example.com")
    assert len(named) == 16 + 1 + 24
    assert "ada" not in named
    others = [
        account_of(1, BUDGET), account_of(2, BUDGET), account_of(1, replace(BUDGET, tenant_id=1)),
        account_of(1, replace(BUDGET, api_key_id=1)), account_of(1, replace(BUDGET, project_id=1)),
        account_of(1, replace(BUDGET, project_id=0)), account_of(1, replace(BUDGET, model="1")),
        account_of(1, replace(BUDGET, user="1")), account_of(1, each), named,
    ]  # fmt: skip
    assert len(set(others)) == len(others)


def test_budgets_alike_share_an_account() -> None:
    day, mine = replace(BUDGET, id=1, interval="day"), replace(BUDGET, id=3, user="ada")
    assert accounts_of([BUDGET, mine, day]) == [[day, BUDGET], [mine]]


def test_budgets_travel_as_they_are() -> None:
    made = replace(BUDGET, project_id=0, each="session", model="gpt-5*")
    assert msgspec.json.decode(msgspec.json.encode(made), type=Budget) == made


def test_models_fit_in_any_case() -> None:
    assert is_of("GPT-5-Mini", "gpt-5*")
    assert is_of("gpt-5", "GPT-5*")
    assert not is_of("gpt-4", "gpt-5*")


def test_amounts_are_shown_in_their_unit() -> None:
    assert shown("money", 12_500_000_000, "EUR") == "12.5 EUR"
    assert shown("money", 1, "EUR") == "0.000000001 EUR"
    assert shown("money", 200_000_000_000, "USD") == "200 USD"
    assert shown("tokens", 3000, "USD") == "3000 tokens"
