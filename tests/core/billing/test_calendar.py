"""Reset boundaries at the ends of days, weeks, months and leap years."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.calendar import cycles_between, next_reset_ms


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("interval", "now", "anchor", "then"),
    [
        ("daily", "2024-02-28T23:59:59.999", 1, "2024-02-29"),
        ("daily", "2024-02-29", 1, "2024-03-01"),
        ("weekly", "2024-02-29T12:00", 1, "2024-03-04"),
        ("weekly", "2024-03-04", 1, "2024-03-11"),
        ("weekly", "2024-03-03T23:59:59.999", 1, "2024-03-04"),
        ("monthly", "2024-02-29T12:00", 1, "2024-03-01"),
        ("monthly", "2024-12-31T12:00", 1, "2025-01-01"),
        ("monthly", "2024-01-31", 31, "2024-02-29"),
        ("monthly", "2023-01-31", 31, "2023-02-28"),
        ("monthly", "2023-02-28", 31, "2023-03-31"),
        ("monthly", "2024-03-31", 30, "2024-04-30"),
        ("monthly", "2024-12-30", 30, "2025-01-30"),
        ("monthly", "2024-01-14T23:59", 15, "2024-01-15"),
    ],
)
def test_next_reset(interval: str, now: str, anchor: int, then: str) -> None:
    assert next_reset_ms(interval, ms(now), anchor) == ms(then)


def test_none_never_resets_and_others_are_refused() -> None:
    assert next_reset_ms("none", 0) is None
    with pytest.raises(ValueError, match="yearly"):
        next_reset_ms("yearly", 0)


MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2199, 1, 1)).map(  # noqa: DTZ001 # made UTC below
    lambda at: int(at.replace(tzinfo=UTC).timestamp() * 1000)
)


@given(st.sampled_from(["daily", "weekly", "monthly"]), MOMENTS, st.integers(1, 31), st.integers(1, 40))
def test_boundaries_follow_one_another(interval: str, now: int, anchor: int, steps: int) -> None:
    first = next_reset_ms(interval, now, anchor)
    assert first is not None
    assert first > now
    at = datetime.fromtimestamp(first / 1000, UTC)
    assert (at.hour, at.minute, at.second, at.microsecond) == (0, 0, 0, 0)
    longest = {"daily": 1, "weekly": 7, "monthly": 31}[interval]
    assert first - now <= timedelta(days=longest) / timedelta(milliseconds=1)
    if interval == "monthly":
        assert at.day == anchor or (at + timedelta(days=1)).day == 1
    last = first
    for _ in range(steps):
        following = next_reset_ms(interval, last, anchor)
        assert following is not None
        last = following
    assert cycles_between(interval, first, last) == steps
