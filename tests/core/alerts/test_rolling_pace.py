"""When a rolling window is used up at its pace: beside a calculation that walks from millisecond to millisecond."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.windows import WHOLE_PARTS
from gateway.core.alerts.thresholds import AlertState, RollingUse, rolling_exhausted_ms

# A window of 300 ms, so that each of them can be looked at: parts of 10 ms.
LENGTH, PART = 300, 10


def walked(window: RollingUse, now_ms: int) -> int | None:
    """Return the last whole moment before the limit is reached, as use comes at the pace of the last sixth."""
    look_ms = (now_ms - LENGTH // 6) // PART * PART
    since_ms = max(min(start for start, _ in window.parts), look_ms)
    spent = sum(use for start, use in window.parts if start >= since_ms)
    if not spent:
        return None
    pace = Fraction(spent, now_ms - since_ms)
    for at_ms in range(now_ms, now_ms + LENGTH + PART + 1):
        old = sum(use for start, use in window.parts if start + PART + LENGTH > at_ms)
        if old + pace * (at_ms + 1 - now_ms) > window.limit and old + pace * (at_ms - now_ms) <= window.limit:
            return at_ms
        if old + pace * (at_ms - now_ms) == window.limit:
            return at_ms
    return None


parts = st.dictionaries(st.integers(0, WHOLE_PARTS), st.integers(1, 50), min_size=8)


@given(parts, st.integers(1, 2_000))
def test_end_of_a_rolling_window_equals_a_walk_by_milliseconds(uses: dict[int, int], limit: int) -> None:
    now_ms = 1_000_000 * PART + (WHOLE_PARTS + 1) * PART
    window = RollingUse(
        LENGTH, limit, tuple((1_000_000 * PART + number * PART, use) for number, use in sorted(uses.items()))
    )
    used = sum(uses.values())
    begun = min(uses)
    twentieths = {(1_000_000 * PART + number * PART) * 20 // LENGTH for number in uses}
    counts = (
        limit > used >= limit / 10
        and (WHOLE_PARTS + 1 - begun) * PART >= LENGTH / 10
        and len(twentieths) >= 3
    )
    assert rolling_exhausted_ms(window, now_ms) == (walked(window, now_ms) if counts else None)


def test_bursts_of_a_rolling_window_are_no_pace() -> None:
    assert rolling_exhausted_ms(RollingUse(LENGTH, 100, ((0, 40), (290, 40))), 300) is None


@given(st.integers(0, 200), st.integers(1, 100), st.booleans())
def test_state_after_a_fall_names_only_thresholds_that_nine_tenths_of_are_used(
    used: int, limit: int, exceeded: bool
) -> None:
    thresholds = (Decimal("0.5"), Decimal("0.8"), Decimal(1))
    state = AlertState().and_of(thresholds, exceeded, limit).after_fall(thresholds, used, limit)
    assert state.part == max([part for part in thresholds if 10 * used >= 9 * part * limit], default=0)
    assert state.exceeded is (exceeded and 10 * used >= 9 * limit)
    assert state.level <= limit
