"""Windows of budgets: when each kind begins, ends and frees, and what an interval hands on."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.accounts.budget_balances import LiveWindow, StoredUse, compute_balance
from gateway.core.accounts.budgets import OTHERS, Budget, PersonalOverride, define_windows
from gateway.core.accounts.intervals import INTERVALS, TOTAL
from gateway.core.accounts.windows import (
    FIRST_USE,
    LENGTH_MAX_MS,
    LENGTH_MIN_MS,
    ROLLING,
    CalendarWindow,
    Carry,
    FirstUseWindow,
    RollingWindow,
    read_length,
    render_length,
    used_at,
)
from gateway.core.times import DAY_MS, HOUR_MS, MINUTE_MS
from gateway.counters.layouts.states import defined_windows
from tests.search import examples

NOW = 1_790_000_123_456
LENGTHS = st.integers(LENGTH_MIN_MS // MINUTE_MS, LENGTH_MAX_MS // MINUTE_MS).map(
    lambda minutes: minutes * MINUTE_MS
)
USES = st.dictionaries(st.integers(0, 3 * LENGTH_MAX_MS), st.integers(1, 10**6), max_size=40)


@given(length_ms=LENGTHS)
def test_render_length_is_the_inverse_of_read_length(length_ms: int) -> None:
    assert read_length(render_length(length_ms)) == length_ms


@settings(max_examples=examples(200))
@given(length_ms=LENGTHS, uses=USES, age=st.floats(0, 1.2))
def test_a_rolling_use_counts_for_the_length_and_a_thirtieth_at_most(
    length_ms: int, uses: dict[int, int], age: float
) -> None:
    form, part = RollingWindow(length_ms), Fraction(length_ms, 30)
    by_part = dict[int, int]()
    for at, used in uses.items():
        start = form.start_of(at)
        assert start == int(at // part * part)
        by_part[start] = by_part.get(start, 0) + used
    now = max(uses, default=0) + int(age * length_ms)
    counted = used_at(form, now, by_part)
    assert counted >= sum(used for at, used in uses.items() if now - at < length_ms)
    assert counted <= sum(used for at, used in uses.items() if now - at <= length_ms + part)
    frees = form.frees(now, by_part)
    left = [counted - used_at(form, at_ms, by_part) for at_ms, _ in frees]
    assert left == [sum(amount for _, amount in frees[: place + 1]) for place in range(len(frees))]
    assert all(used_at(form, at_ms - 1, by_part) > used_at(form, at_ms, by_part) for at_ms, _ in frees)


def test_a_window_from_first_use_is_that_of_the_last_start_within_the_length() -> None:
    form, length = FirstUseWindow(5 * HOUR_MS), 5 * HOUR_MS
    uses = {NOW: 7, NOW - length: 5}
    assert (form.ends(NOW, uses), used_at(form, NOW, uses), form.start_of(NOW + 1, uses)) == (
        NOW + length,
        7,
        NOW,
    )
    last = NOW + length - 1
    assert (form.ends(last, uses), used_at(form, last, uses)) == (NOW + length, 7)
    assert (form.ends(NOW + length, uses), used_at(form, NOW + length, uses)) == (0, 0)


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Chatham"])


@settings(max_examples=examples(200))
@given(
    interval=st.sampled_from([name for name in INTERVALS if name != TOTAL]), zone=ZONES,
    anchor=st.integers(1, 31), at=st.integers(10**12, 3 * 10**12),
)  # fmt: skip
def test_the_next_interval_has_the_next_number(interval: str, zone: str, anchor: int, at: int) -> None:
    form = CalendarWindow(interval, zone, min(anchor, INTERVALS[interval].anchor_max))
    times = form.times(at)
    assert form.number(times.next) - form.number(times.start) == 1
    assert form.number(times.after) - form.number(times.next) == 1


@settings(max_examples=examples(200))
@given(
    most=st.integers(1, 500), debt=st.booleans(), carried=st.integers(-900, 500), used=st.integers(0, 2_000),
    limit=st.integers(0, 300), intervals=st.integers(1, 12),
)  # fmt: skip
def test_carry_hands_on_the_rest_of_each_interval(
    *, most: int, debt: bool, carried: int, used: int, limit: int, intervals: int
) -> None:
    passing = carried
    for place in range(intervals):
        passing += limit - (used if place == 0 else 0)
        if passing > most:
            passing = most
        elif passing < 0 and not debt:
            passing = 0
    carry = Carry(most, debt)
    assert carry.leave(carry.leave(carried - used, limit), limit, intervals - 1) == passing
    assert carry.leave(carried - used, None, intervals) == most


def test_the_balance_of_each_kind_is_of_redis_else_of_rows() -> None:
    length = 5 * HOUR_MS
    rolls = Budget(1, "rolls", "tokens", 100, "", window=ROLLING, length_ms=length)
    begins = Budget(2, "begins", "tokens", 100, "", window=FIRST_USE, length_ms=length)
    carries = Budget(3, "carries", "tokens", 100, "day", carry=Carry(150))
    part, day = RollingWindow(length).start_of(NOW), NOW // DAY_MS * DAY_MS
    old, parts = part - 31 * length // 30, {part - length: 30, part: 5}
    live = {1: LiveWindow(1, 99, 3, part, {old: 64, **parts})}
    for known, of_redis in ((None, live), (StoredUse({old: 64, **parts}), None)):
        balance = compute_balance(rolls, NOW, known, of_redis)
        assert (balance.used, balance.resets_ms, balance.remaining) == (35, 0, 65)
        assert balance.frees == ((part + length // 30, 30), (part + 31 * length // 30, 5))
    balance = compute_balance(begins, NOW, None, {2: LiveWindow(2, 40, 0, NOW - 9)})
    assert (balance.used, balance.resets_ms) == (40, NOW - 9 + length)
    assert compute_balance(begins, NOW, StoredUse({NOW - length: 40})).used == 0
    for known, of_redis in (
        (None, {3: LiveWindow(3, 70, 0, day - DAY_MS, carried=60)}), (StoredUse({day - DAY_MS: 70}, 60), None),
    ):  # fmt: skip
        balance = compute_balance(carries, NOW, known, of_redis)
        assert (balance.used, balance.carried, balance.remaining, balance.limit_in_force) == (0, 90, 190, 190)
    debt, overspent = Carry(150, debt=True), StoredUse({day - DAY_MS: 310}, 0)
    balance = compute_balance(replace(carries, carry=debt), NOW, overspent)
    assert (balance.limit, balance.carried, balance.limit_in_force) == (100, -210, 0)
    assert compute_balance(carries, NOW, None, {3: LiveWindow(3, 0, 0, day - DAY_MS)}).carried == 0


def test_definitions_have_the_limit_in_force_at_the_end_of_an_interval() -> None:
    day = NOW // DAY_MS * DAY_MS
    owner = "a" * 24
    budget = Budget(
        1, "each", "tokens", 100, "day", each="user", carry=Carry(150),
        overrides={owner: PersonalOverride(500, NOW + 1), "b" * 24: PersonalOverride(None)},
    )  # fmt: skip
    assert day + DAY_MS > NOW + 1
    [window] = defined_windows(define_windows([budget], NOW, owner))
    assert window.carry is not None
    assert (window.limit, window.carry.end.amount, window.carry.most) == (500, 100, 150)
    [window] = defined_windows(define_windows([budget], NOW, "b" * 24))
    assert window.carry is not None
    assert window.carry.end.amount is None
    [window] = defined_windows(define_windows([budget], NOW, OTHERS))
    assert window.carry is None


@pytest.mark.parametrize("window", [ROLLING, FIRST_USE])
def test_a_definition_of_a_window_of_a_length_is_the_same_at_any_time(window: str) -> None:
    budget = Budget(1, "x", "tokens", 100, "", window=window, length_ms=5 * HOUR_MS)
    assert define_windows([budget], NOW) == define_windows([budget], NOW + DAY_MS)
    assert budget.form.valid_until(NOW) == 0
