"""Milliseconds and moments: each is the other's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.times import DAY_MS, HOUR_MS, moment_of, ms_of, rfc3339


@given(st.integers(0, 253_402_300_799_999))
def test_a_millisecond_has_one_moment(at_ms: int) -> None:
    assert ms_of(moment_of(at_ms)) == at_ms


def test_a_moment_is_counted_by_the_nearest_millisecond_and_none_is_never() -> None:
    noon = datetime(1970, 1, 2, 12, tzinfo=UTC)
    assert ms_of(noon) == DAY_MS + 12 * HOUR_MS
    assert ms_of(noon + timedelta(microseconds=600)) == ms_of(noon) + 1
    assert ms_of(None) == 0


def test_a_moment_is_written_in_utc() -> None:
    evening = datetime(2026, 1, 31, 23, 30, 0, 5, timezone(timedelta(hours=-1)))
    assert rfc3339(evening) == "2026-02-01T00:30:00.000005Z"
    assert rfc3339(evening, "seconds") == "2026-02-01T00:30:00Z"
