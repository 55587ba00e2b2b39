"""Cycles keep their anchor day, segments never overlap, changes happen when they were asked for."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.subscription import (
    Subscription,
    advance,
    begin,
    boundary,
    cancel,
    change_at_period_end,
    change_now,
    cycle_of,
    extend,
    status,
)
from gateway.errors import Conflict

DAYS = st.dates(date(2020, 1, 1), date(2032, 12, 31))
INTERVALS = st.sampled_from(["monthly", "annual"])
STARTER, PRO = Decimal("29.00"), Decimal("99.00")


def april() -> Subscription:
    return begin(1, "monthly", STARTER, date(2026, 4, 1), date(2027, 4, 1))


def spans(subscription: Subscription) -> list[tuple[int, date, date]]:
    return [(each.plan_id, each.start, each.end) for each in subscription.segments]


@pytest.mark.parametrize(
    ("anchor", "interval", "cycles", "day"),
    [
        (date(2026, 1, 31), "monthly", 1, date(2026, 2, 28)),
        (date(2026, 1, 31), "monthly", 2, date(2026, 3, 31)),
        (date(2026, 1, 31), "monthly", 25, date(2028, 2, 29)),
        (date(2026, 3, 31), "monthly", -1, date(2026, 2, 28)),
        (date(2024, 2, 29), "annual", 1, date(2025, 2, 28)),
        (date(2024, 2, 29), "annual", 4, date(2028, 2, 29)),
        (date(2026, 11, 15), "monthly", 2, date(2027, 1, 15)),
    ],
)
def test_a_boundary_keeps_the_anchor_day(anchor: date, interval: str, cycles: int, day: date) -> None:
    assert boundary(anchor, interval, cycles) == day


@given(anchor=DAYS, interval=INTERVALS, day=DAYS)
def test_every_day_lies_in_exactly_one_cycle(anchor: date, interval: str, day: date) -> None:
    start, end = cycle_of(anchor, interval, day)
    assert start <= day < end
    assert cycle_of(anchor, interval, end)[0] == end
    assert cycle_of(anchor, interval, start - timedelta(days=1))[1] == start


def test_an_upgrade_counts_from_its_day() -> None:
    upgraded = change_now(april(), 2, PRO, date(2026, 4, 16))
    assert spans(upgraded) == [
        (1, date(2026, 4, 1), date(2026, 4, 16)),
        (2, date(2026, 4, 16), date(2027, 4, 1)),
    ]
    assert {segment.anchor for segment in upgraded.segments} == {date(2026, 4, 1)}


def test_a_change_at_the_period_end_waits_for_its_day() -> None:
    waiting = change_at_period_end(april(), 2, date(2026, 4, 16))
    assert (waiting.next_plan_id, waiting.change_at) == (2, date(2026, 5, 1))
    assert advance(waiting, PRO, date(2026, 4, 30)) == waiting
    done = advance(waiting, PRO, date(2026, 5, 3))
    assert spans(done)[-1] == (2, date(2026, 5, 1), date(2027, 4, 1))
    assert (done.next_plan_id, done.change_at) == (None, None)


def test_a_change_now_replaces_one_that_waits() -> None:
    waiting = change_at_period_end(april(), 2, date(2026, 4, 16))
    assert change_now(waiting, 3, PRO, date(2026, 4, 17)).change_at is None


def test_no_change_waits_beyond_the_end() -> None:
    short = begin(1, "monthly", STARTER, date(2026, 4, 1), date(2026, 5, 1))
    with pytest.raises(Conflict):
        change_at_period_end(short, 2, date(2026, 4, 16))


def test_cancelling_ends_it_today_or_with_the_cycle() -> None:
    assert cancel(april(), date(2026, 4, 16), now=True).end == date(2026, 4, 16)
    ending = cancel(april(), date(2026, 4, 16), now=False)
    assert (ending.end, ending.cancel_at) == (date(2026, 5, 1), date(2026, 5, 1))
    for again in (
        lambda: change_now(ending, 2, PRO, date(2026, 5, 1)),
        lambda: cancel(ending, date(2026, 5, 1), now=True),
        lambda: extend(ending, date(2027, 1, 1), date(2026, 5, 1)),
    ):
        with pytest.raises(Conflict):
            again()


def test_extending_takes_a_cancellation_back() -> None:
    ending = cancel(april(), date(2026, 4, 16), now=False)
    assert (extend(ending, date(2028, 4, 1), date(2026, 4, 20)).end, ending.cancel_at) == (
        date(2028, 4, 1),
        date(2026, 5, 1),
    )
    with pytest.raises(Conflict):
        extend(ending, date(2026, 4, 20), date(2026, 4, 20))


def test_a_subscription_to_come_is_cancelled_on_its_first_day() -> None:
    assert cancel(april(), date(2026, 3, 1), now=True).end == date(2026, 4, 1)


def test_status_of_a_span() -> None:
    start, end = date(2026, 4, 1), date(2026, 5, 1)
    days = (date(2026, 3, 31), start, date(2026, 4, 30), end)
    assert [status(start, end, day) for day in days] == ["future", "active", "active", "over"]


def test_what_was_cancelled_before_it_began_is_over() -> None:
    assert status(date(2026, 4, 1), date(2026, 4, 1), date(2026, 3, 1)) == "over"
