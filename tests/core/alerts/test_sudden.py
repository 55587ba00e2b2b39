"""Sudden use: many times what is usual at this time of day, and no small number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.alerts.thresholds import COST_LEAST, HourlySpend, is_sudden, same_hours

NOW = datetime(2026, 11, 24, 13, 20, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=100)
UNIT = COST_LEAST


def hour(cost: int, usual: int = UNIT, day: int = 24 * UNIT, since: datetime = LONG_AGO) -> HourlySpend:
    return HourlySpend(cost, usual, day, since)


def test_three_times_the_usual_is_sudden() -> None:
    assert is_sudden(hour(3 * UNIT), NOW)
    assert not is_sudden(hour(3 * UNIT - 1), NOW)


def test_use_where_none_is_usual_is_sudden() -> None:
    assert is_sudden(hour(UNIT, usual=0, day=0), NOW)


def test_small_numbers_say_nothing() -> None:
    assert not is_sudden(hour(UNIT - 1, usual=0, day=0), NOW)
    assert not is_sudden(hour(9 * UNIT, usual=0, day=1_000 * UNIT), NOW)
    assert is_sudden(hour(10 * UNIT, usual=0, day=1_000 * UNIT), NOW)


def test_of_newcomers_nothing_is_usual() -> None:
    assert not is_sudden(hour(99 * UNIT, since=NOW - timedelta(days=2)), NOW)
    assert is_sudden(hour(99 * UNIT, since=NOW - timedelta(days=3)), NOW)


def test_the_same_hours_of_seven_days() -> None:
    found = same_hours(NOW.replace(minute=0))
    assert len(set(found)) == 21
    assert {(NOW.date() - at.date()).days for at in found} == set(range(1, 8))
    assert {at.hour for at in found} == {12, 13, 14}


@given(st.integers(0, 10**18), st.integers(0, 10**18), st.integers(0, 10**18))
def test_what_costs_more_is_no_less_sudden(cost: int, usual: int, day: int) -> None:
    if is_sudden(hour(cost, usual, day), NOW):
        assert cost >= max(UNIT, 3 * usual, day // 100)
        assert is_sudden(hour(cost + 1, usual, day), NOW)
