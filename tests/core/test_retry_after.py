"""What another side says with `Retry-After`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.core.circuit_breaker import retry_after_s

NOW = datetime(2026, 3, 29, 0, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("0.5", 0.5),
        ("9" * 64, float("9" * 64)),
        ("Sun, 29 Mar 2026 00:31:30 GMT", 90.0),
        ("Sun, 29 Mar 2026 02:31:30 +0200", 90.0),
        ("Sun, 29 Mar 2026 00:31:30 -0000", 90.0),  # of no zone: UTC, wherever this runs
        ("Sun, 29 Mar 2026 00:00:00 GMT", 0.0),
    ],
)
def test_seconds_and_dates_are_read(value: str, seconds: float) -> None:
    """A date that has passed is no wait."""
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize(
    "value", ["", "-1", "1e3", "nan", "inf", "٣", "1_0", "+5", " 5", "soon", "Mon, 99 Mar 2026", "9" * 65]
)
def test_what_is_neither_says_nothing(value: str) -> None:
    """A stranger's value never raises."""
    assert retry_after_s(value, NOW) is None
