"""A cycle of tokens keeps the terms it began with; a change is of the next one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.proration import PlanVersion, TokenTerms, sold_with

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BEGINS = datetime(2026, 1, 1, tzinfo=UTC)


def monthly(total: int | None, policy: str = "block") -> TokenTerms:
    return TokenTerms(total, policy, "monthly", "UTC", 1)


def at(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


@given(
    changes=st.lists(st.integers(0, 24 * 200), min_size=1, max_size=8, unique=True).map(sorted),
    had=st.integers(0, 24 * 200),
    moment=st.integers(0, 24 * 200),
)
def test_what_is_said_within_a_month_is_of_the_next_one(changes: list[int], had: int, moment: int) -> None:
    said = [PlanVersion(BEGINS + hours * HOUR, monthly(number)) for number, hours in enumerate(changes)]
    got, now = BEGINS + min(had, moment) * HOUR, BEGINS + moment * HOUR
    given_ = PlanVersion(
        got, monthly(max([n for n, each in enumerate(said) if each.since <= got], default=0))
    )
    # As it would go day by day: the terms are taken up as a month begins, or with the plan.
    runs, day = given_.terms, got
    while day <= now:
        day += HOUR
        if (day.day, day.hour) == (1, 0) and day <= now:
            runs = monthly(max([n for n, each in enumerate(said) if each.since <= day], default=0))
    assert sold_with(said, given_, None, now) == runs


@pytest.mark.parametrize(
    ("since", "moment", "total"),
    [
        (at(4, 10), at(4, 10, 14), 1_000),  # the month that ran
        (at(4, 10), at(4, 11), 70),  # the day behind it
        (at(4, 10), at(5, 2), 70),
    ],
)
def test_a_month_that_becomes_days_is_a_month_up_to_then(
    since: datetime, moment: datetime, total: int
) -> None:
    said = [
        PlanVersion(BEGINS, monthly(1_000)),
        PlanVersion(since, TokenTerms(70, "block", "daily", "UTC", 1)),
    ]
    assert sold_with(said, None, None, moment).total == total


def test_days_that_become_a_month_are_of_the_day_that_ran() -> None:
    said = [
        PlanVersion(BEGINS, TokenTerms(70, "block", "daily", "UTC", 1)),
        PlanVersion(at(4, 10), monthly(1_000)),
    ]
    assert sold_with(said, None, None, at(4, 20)).total == 70
    assert sold_with(said, None, None, at(5, 1)).total == 1_000


def test_a_reset_that_a_person_asked_for_begins_a_cycle() -> None:
    said = [
        PlanVersion(BEGINS, monthly(1_000)),
        PlanVersion(at(4, 10), monthly(5_000)),
        PlanVersion(at(4, 15), monthly(6_000)),
    ]
    assert sold_with(said, None, None, at(4, 20)).total == 1_000
    assert sold_with(said, None, at(4, 12), at(4, 20)).total == 5_000
    assert sold_with(said, PlanVersion(at(4, 14), monthly(5_001)), at(4, 12), at(4, 20)).total == 5_001


def test_tokens_that_are_given_once_are_those_that_were_given() -> None:
    once = [TokenTerms(total, "block", "none", "UTC", 1) for total in (10, 20, 30)]
    said = [PlanVersion(BEGINS, once[0]), PlanVersion(at(2, 1), once[1]), PlanVersion(at(3, 1), once[2])]
    assert sold_with(said, PlanVersion(at(2, 5), once[1]), None, at(9, 1)) == once[1]
    assert sold_with(said, PlanVersion(at(2, 5), once[1]), at(4, 1), at(9, 1)) == once[2]


def test_what_is_older_than_all_that_is_known_is_what_is_known_first() -> None:
    said = [PlanVersion(at(4, 10), monthly(1_000)), PlanVersion(at(4, 11), monthly(2_000))]
    assert sold_with(said, None, None, at(3, 1)).total == 1_000
    assert sold_with(said, None, None, at(4, 20)).total == 1_000
    assert sold_with(said, None, None, at(5, 20)).total == 2_000
