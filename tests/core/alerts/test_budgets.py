"""What is told of a budget: each part of it that is reached, and when it is used up at its pace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.intervals import INTERVALS, window_bounds
from gateway.core.alerts.thresholds import (
    COST_LEAST,
    TOTAL_AHEAD_MS,
    AlertState,
    HourlySpend,
    RunningWindow,
    Samples,
    UsageSample,
    crossed,
    exceeds,
    exhausted_ms,
    is_sudden,
    remembered,
    same_hours,
)
from gateway.core.times import DAY_MS, HOUR_MS

PARTS = (Decimal("0.5"), Decimal("0.8"), Decimal(1))
# Use came in three twentieths of the window.
CAME = (0, 2 * DAY_MS, 4 * DAY_MS)
NEVER = Samples(came_ms=CAME)
NOTHING = AlertState()
HALF, ALL = NOTHING.and_of(PARTS[:1], False, 100), NOTHING.and_of(PARTS, True, 100)


def month(used: int, limit: int = 100) -> RunningWindow:
    return RunningWindow("month", 0, 30 * DAY_MS, limit, used)


def test_each_part_is_told_once() -> None:
    assert crossed(PARTS, NOTHING, 49, 100) == []
    assert crossed(PARTS, NOTHING, 50, 100) == [Decimal("0.5")]
    assert crossed(PARTS, HALF, 79, 100) == []
    assert crossed(PARTS, HALF, 120, 100) == [Decimal("0.8"), Decimal(1)]
    assert crossed(PARTS, ALL, 1_000, 100) == []


def test_a_part_is_reached_to_the_last_unit() -> None:
    limit = 2**53 - 1
    least = -(-limit * 8 // 10)
    assert crossed([Decimal("0.8")], NOTHING, least, limit) == [Decimal("0.8")]
    assert crossed([Decimal("0.8")], NOTHING, least - 1, limit) == []


@given(st.lists(st.integers(0, 10**15)), st.integers(1, 10**15))
def test_however_use_grows_each_part_is_told_once(uses: list[int], limit: int) -> None:
    told, parts, used = NOTHING, list[Decimal](), 0
    for more in uses:
        used += more
        parts += (found := crossed(PARTS, told, used, limit))
        told = told.and_of(found, exceeds(told, used, limit), limit)
    assert parts == [part for part in PARTS if used >= part * limit]
    assert told.exceeded == (used >= limit)
    assert not exceeds(told, used, limit)


def test_a_raised_amount_is_told_once_more() -> None:
    """80 of 100 and 75 of 150 were told as 80: what is told of 150 lies beyond 100."""
    assert crossed(PARTS, ALL, 119, 150) == []
    assert crossed(PARTS, ALL, 120, 150) == [Decimal("0.8")]
    assert not exceeds(ALL, 149, 150)
    assert exceeds(ALL, 150, 150)
    raised = ALL.and_of(PARTS[1:], True, 150)
    assert crossed(PARTS, raised, 1_000, 150) == []
    assert not exceeds(raised, 1_000, 150)
    assert not exceeds(raised, 1_000, 100)  # the raise is over


def test_of_a_smaller_amount_higher_parts_are_told() -> None:
    assert crossed(PARTS, HALF, 49, 50) == [Decimal("0.8")]
    assert exceeds(HALF, 50, 50)


def test_the_pace_of_the_window_so_far() -> None:
    """Half in ten days of thirty: the other half lasts ten days more."""
    assert exhausted_ms(month(50), NEVER, 10 * DAY_MS) == 20 * DAY_MS
    assert exhausted_ms(month(33), NEVER, 10 * DAY_MS) is None


def test_the_pace_of_the_last_days_where_there_are_any() -> None:
    """Slow for two weeks, then fast."""
    samples = Samples(UsageSample(20, 14 * DAY_MS), None, CAME)
    assert exhausted_ms(month(60), NEVER, 21 * DAY_MS) is None
    assert exhausted_ms(month(60), samples, 21 * DAY_MS) == 28 * DAY_MS
    assert exhausted_ms(month(60), Samples(UsageSample(60, 14 * DAY_MS), None, CAME), 21 * DAY_MS) is None


def test_a_pace_is_believed_after_a_while() -> None:
    """A tenth of thirty days are three, and at least a tenth of the amount is used."""
    assert exhausted_ms(month(9), NEVER, 3 * DAY_MS) is None
    assert exhausted_ms(month(50), NEVER, 3 * DAY_MS - 1) is None
    assert exhausted_ms(month(50), NEVER, 3 * DAY_MS) == 6 * DAY_MS


def test_a_pace_is_of_three_twentieths_of_a_window() -> None:
    assert exhausted_ms(month(50), Samples(came_ms=CAME[:2]), 10 * DAY_MS) is None
    assert exhausted_ms(month(50), Samples(came_ms=CAME), 10 * DAY_MS) == 20 * DAY_MS


def foreseen(*uses: tuple[int, int]) -> list[int]:
    """The minutes of an hour at which the end of 100 is foreseen; `uses` are (minute, use from then on)."""
    samples, found = Samples(), list[int]()
    for minute in range(1, 60):
        used = max([0, *(use for since, use in uses if since <= minute)])
        window = RunningWindow("hour", 0, HOUR_MS, 100, used)
        samples = remembered(samples, window, minute * HOUR_MS // 60)
        if exhausted_ms(window, samples, minute * HOUR_MS // 60) is not None:
            found.append(minute)
    return found


def test_a_steady_hour_is_foreseen_once_three_twentieths_have_use() -> None:
    """Two a minute: use in minutes 1, 3 and 6, and a tenth of the hour has passed."""
    assert foreseen(*((minute, 2 * minute) for minute in range(1, 50)))[0] == 6


def test_two_bursts_in_an_hour_are_no_pace() -> None:
    assert foreseen((1, 30), (2, 60)) == []
    assert foreseen((1, 30), (2, 40), (20, 80)) == []
    assert foreseen((1, 30), (10, 40), (20, 80))[0] == 20


def test_a_window_that_was_reset_forgets_its_twentieths() -> None:
    samples = Samples(None, UsageSample(50, 0), CAME[:2], 70)
    assert remembered(samples, month(60), DAY_MS).came_ms == (DAY_MS,)


def test_what_is_used_up_is_not_foreseen() -> None:
    assert exhausted_ms(month(100), NEVER, DAY_MS) is None
    assert exhausted_ms(month(101), NEVER, DAY_MS) is None


def test_what_never_begins_again_is_foreseen_some_days_ahead() -> None:
    total = RunningWindow("total", 0, 0, 100, 50)
    assert exhausted_ms(total, NEVER, 6 * DAY_MS) == 12 * DAY_MS
    assert exhausted_ms(total, NEVER, 8 * DAY_MS) is None
    assert exhausted_ms(total, NEVER, 144 * 60_000) == 288 * 60_000  # a tenth of a day
    assert exhausted_ms(total, NEVER, 144 * 60_000 - 1) is None


def test_samples_are_a_look_back_apart() -> None:
    back = INTERVALS["month"].look_back_ms
    first = remembered(NEVER, month(10), 0)
    assert first == Samples(None, UsageSample(10, 0), (0,), 10)
    assert remembered(first, month(20), back - 1)[:2] == first[:2]
    second = remembered(first, month(20), back)
    assert second == Samples(UsageSample(10, 0), UsageSample(20, back), (0, back), 20)
    assert remembered(second, month(30), 2 * back) == Samples(
        UsageSample(20, back), UsageSample(30, 2 * back), (0, back, 2 * back), 30
    )


def test_what_was_set_back_begins_anew() -> None:
    samples = Samples(UsageSample(50, 0), UsageSample(70, DAY_MS))
    assert remembered(samples, month(5), 2 * DAY_MS) == Samples(
        None, UsageSample(5, 2 * DAY_MS), (2 * DAY_MS,), 5
    )


@given(
    st.sampled_from(sorted(INTERVALS)),
    st.integers(0, 4 * 10**12),
    st.floats(0, 1),
    st.tuples(st.integers(0, 2**53), st.integers(1, 2**53)),
    st.none() | st.tuples(st.integers(0, 2**53), st.floats(0, 1)),
)
def test_an_end_lies_between_now_and_the_next_window(
    interval: str, at: int, passed: float, amounts: tuple[int, int], before: tuple[int, float] | None
) -> None:
    used, limit = amounts
    start, next_, _ = window_bounds(interval, "Europe/Berlin", 1, at)
    now = start + int(((next_ or start + 400 * DAY_MS) - start) * passed)
    samples = Samples(
        UsageSample(before[0], start + int((now - start) * before[1])) if before else None, None, CAME
    )
    end = exhausted_ms(RunningWindow(interval, start, next_, limit, used), samples, now)
    if end is not None:
        assert limit / 10 <= used < limit
        assert now <= end < (next_ or now + TOTAL_AHEAD_MS)


@given(st.integers(10, 99), st.integers(10, 99), st.integers(1, 29))
def test_who_has_used_more_is_told_no_later(one: int, other: int, day: int) -> None:
    less, more = sorted([one, other])
    ends = [exhausted_ms(month(used), NEVER, day * DAY_MS) for used in (less, more)]
    if ends[0] is not None:
        assert ends[1] is not None
        assert ends[1] <= ends[0]


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 700))
def test_at_an_even_pace_the_end_is_exact(pace: int, limit: int, hours: int) -> None:
    used = pace * hours
    end = exhausted_ms(month(used, limit), NEVER, hours * HOUR_MS)
    if end is not None:
        assert (end - 1) * pace < limit * HOUR_MS
        assert limit * HOUR_MS < (end + 2) * pace + pace * HOUR_MS


# --- sudden -----------------------------------------------------------------------------
# Sudden use: many times what is usual at this time of day, and no small number.


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
