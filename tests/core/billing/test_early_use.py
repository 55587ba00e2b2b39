"""Where a plan ends inside a cycle its fee is the larger of two shares: of its days, and of its tokens."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.billing.proration import (
    ALL,
    EarlyUse,
    PlanEnd,
    PlanStart,
    PlanUsage,
    SegmentEnd,
    TokenTerms,
    ahead,
    debt_end,
    plan_end,
    tokens_used,
)
from gateway.core.billing.subscription import PlanSegment, SegmentTerms, midnight
from tests.search import examples

DAY = timedelta(days=1)
NANO = Fraction(1, 10**9)
BLOCKS = TokenTerms(1_000_000, "block", "monthly", "UTC", 1)
APRIL = date(2026, 4, 1)


def ended(
    cost: str, start: date, end: date, *, at: datetime | None = None, over: bool = True, **more: object
) -> SegmentEnd:
    """A monthly plan that counts from 1 April and ended: by the calendar, where no moment is said."""
    terms = SegmentTerms(**more)  # type: ignore[arg-type]  # fields of the terms
    segment = PlanSegment(1, "monthly", Decimal(cost), APRIL, start, end, 1, terms)
    return SegmentEnd(1, [segment], segment, at or midnight(end) - timedelta(milliseconds=1), over)


def used_of(end: PlanEnd, used: int, debt: int | None = None) -> PlanUsage:
    return PlanUsage(1, 1, end.until, end.total, end.worth, used, end.counted, None, debt)


def alone(end: PlanEnd, used: int, debt: int | None = None) -> EarlyUse:
    """What a plan owes that was the only one of its cycle."""
    [found] = ahead([used_of(end, used, debt)], lambda _: end.paid, Decimal(0))
    return found


@given(
    cost=st.integers(1, 10**9),
    total=st.integers(1, 10**12),
    used=st.fractions(0, 1),
    begins=st.integers(0, 29),
    days=st.integers(0, 29),
)
def test_days_and_early_use_come_to_the_larger_share(
    cost: int, total: int, used: Fraction, begins: int, days: int
) -> None:
    start = APRIL + begins * DAY
    end = min(start + days * DAY, date(2026, 5, 1))
    price = Fraction(cost, 100)
    noon = datetime.combine(min(end, date(2026, 4, 30)), datetime.min.time(), UTC) + timedelta(hours=12)
    had = TokenTerms(total, "block", "monthly", "UTC", 1)
    found = plan_end(ended(str(Decimal(cost) / 100), start, end, at=noon), had, None)
    assert found is not None
    tokens = int(used * total)
    due = alone(found, tokens)
    by_days = price * Fraction((end - start).days, 30)
    by_tokens = price * Fraction(tokens, total)
    assert 0 <= due.tokens <= max(1, tokens)
    # What a day comes to is whole nano-units.
    assert abs(by_days + Fraction(due.amount) - max(by_days, by_tokens)) <= 3 * NANO
    assert Fraction(found.paid) + Fraction(due.amount) <= Fraction(found.worth)
    # A token that is paid in part counts.
    exact = max(0, tokens - by_days / price * total)
    assert abs(due.tokens - exact) <= 1 + 3 * NANO * total / price
    # A price is told by nano-units of all tokens, or by twelve digits.
    assert abs(Fraction(due.unit_price) - price / total) <= NANO / max(1, tokens) + Fraction(1, 10**12)


PLANS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 900)), min_size=2, max_size=4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 12)),
        st.tuples(st.just("use"), st.integers(1, 9)),
        st.tuples(st.just("go"), st.sampled_from([0, 0, 1, 1, 2, 3, None])),
    ),
    max_size=14,
)


class Month:
    """A cycle of thirty days in which plans come, go and come back: what each token costs, by itself."""

    def __init__(self, plans: list[tuple[int, int]]) -> None:
        self.plans = plans
        self.day = self.since = 0
        self.plan: tuple[int, int] | None = None
        self.days = Fraction(0)
        self.paid_before = Fraction(0)
        # By token: the lowest price of the plans that had it; and those that no plan has now.
        self.prices: dict[int, Fraction] = {}
        self.out: set[int] = set()
        # How many tokens plans had used that ended: a plan that runs pays for its own use by its days.
        self.of_ended = 0
        self.came_back = False
        self.ends: list[PlanUsage] = []

    def wait(self, days: int) -> None:
        until = min(30, self.day + days)
        if self.plan is not None:
            self.days += Fraction(self.plan[1] * (until - self.day), 30)
        self.day = until

    def use(self, tokens: int) -> None:
        if self.plan is not None:
            total, fee = self.plan
            for token in range(len(self.prices), min(total, len(self.prices) + tokens)):
                self.prices[token] = Fraction(fee, total)

    def go(self, number: int | None) -> None:
        plan = None if number is None else self.plans[number % len(self.plans)]
        if plan == self.plan:
            return
        has = 0 if plan is None else plan[0]
        self.ends = [
            replace(end, regained=max(end.regained or 0, has)) if end.counted < has else end
            for end in self.ends
        ]
        if self.plan is not None:
            total, fee = self.plan
            used, until = min(total, len(self.prices)), APRIL + self.day * DAY
            self.of_ended = len(self.prices)
            self.ends.append(PlanUsage(1, 1, until, total, Decimal(fee), used, has))
        self.came_back = any(token < has for token in self.out)
        self.out = {token for token in self.prices if token >= has}
        for token in self.prices.keys() - self.out:
            self.prices[token] = min(
                self.prices[token], Fraction(has and plan[1], has) if plan else Fraction(0)
            )
        self.plan, self.paid_before = plan, self.days

    def owed(self) -> Fraction:
        """What the cycle comes to in the end: its days, or its tokens."""
        self.wait(30)
        of = range(self.of_ended) if self.came_back else self.out
        tokens = sum((self.prices[token] for token in of), Fraction(0))
        paid = self.days if self.came_back else self.paid_before
        return self.days + max(Fraction(0), tokens - paid)

    def early(self) -> Fraction:
        """What is charged beyond days."""

        def fees(until: date | None) -> Decimal:
            due = self.days if until is None else self.paid_before
            return Decimal(due.numerator) / Decimal(due.denominator)

        runs = Decimal(0 if self.plan is None else self.plan[1])
        return sum((Fraction(each.amount) for each in ahead(self.ends, fees, runs)), Fraction(0))


# Gone, back, and used on: a plan that runs pays for that by its days.
@example(plans=[(9, 900)], steps=[("use", 1), ("go", None), ("wait", 15), ("go", 0), ("use", 8)])
@example(
    plans=[(9, 900)],
    steps=[("use", 1), ("go", None), ("wait", 15), ("go", 0), ("use", 8), ("wait", 5), ("go", None)],
)
@settings(max_examples=examples(1_000))
@given(plans=PLANS, steps=STEPS)
def test_a_cycle_owes_its_days_or_its_tokens_once_whatever_comes_back(
    plans: list[tuple[int, int]], steps: list[tuple[str, Any]]
) -> None:
    month = Month(plans)
    for what, how in [("go", 0), *steps]:
        getattr(month, what)(how)
    # A share of a few tokens is no whole nano-unit.
    assert abs(month.owed() - month.days - month.early()) <= 20 * NANO


def test_seven_tokens_of_which_all_were_used_cost_their_fee() -> None:
    had = TokenTerms(7, "block", "monthly", "UTC", 1)
    half = plan_end(ended("300.00", APRIL, date(2026, 4, 16)), had, None)
    assert half is not None
    price = Decimal("42.857142857143")
    # Days pay for three tokens and a half: of the fourth one a half is owed.
    assert alone(half, 7) == EarlyUse(4, Decimal(150), price)
    assert alone(half, 7, debt=2) == EarlyUse(2, Decimal("85.714285714"), price)
    assert alone(half, 3) == EarlyUse(0, Decimal(0), price)


@pytest.mark.parametrize(
    ("policy", "over", "then", "counted"),
    [
        ("block", True, None, 0), ("carry", True, None, 0), ("bill", True, None, None),
        ("block", False, None, None), ("block", False, ("block", 500), 500),
        ("bill", False, ("block", 500), 500), ("block", False, ("block", None), None),
        ("block", False, ("bill", 500), None), ("block", False, ("carry", 500), 500),
    ],
)  # fmt: skip
def test_who_counts_what_was_used(
    policy: str, over: bool, then: tuple[str, int | None] | None, counted: int | None
) -> None:
    moment = datetime(2026, 4, 10, 12, tzinfo=UTC)
    had = TokenTerms(1_000, policy, "monthly", "UTC", 1)
    next_ = None if then is None else TokenTerms(then[1], then[0], "monthly", "UTC", 1)
    found = plan_end(ended("30.00", APRIL, date(2026, 4, 10), at=moment, over=over), had, next_)
    assert (None if found is None else found.counted) == counted
    assert (found is not None and found.carries) == (then is not None and then[0] == "carry")


@pytest.mark.parametrize(
    ("over", "then", "day", "expected"),
    [
        (True, None, date(2026, 4, 10), 0),
        (False, None, date(2026, 4, 10), 0),
        (False, ("block", 500), date(2026, 4, 10), 0),
        (False, ("block", 1_500), date(2026, 4, 10), 500),
        (False, ("block", 1_500), date(2026, 5, 1), 500),
        (False, ("bill", 500), date(2026, 4, 10), ALL),
        (False, ("carry", None), date(2026, 4, 10), ALL),
    ],
)
def test_who_has_the_debt_that_a_plan_carried(
    over: bool, then: tuple[str, int | None] | None, day: date, expected: int
) -> None:
    had = TokenTerms(1_000, "carry", "monthly", "UTC", 1)
    next_ = None if then is None else TokenTerms(then[1], then[0], "monthly", "UTC", 1)
    at = datetime.combine(day, datetime.min.time(), UTC) - timedelta(milliseconds=1)
    found = debt_end(ended("30.00", APRIL, day, at=at, over=over), had, next_)
    assert found is not None
    assert found.counted == expected
    assert debt_end(None, had, TokenTerms(5, "carry", "daily", "UTC", 1)) is None


@pytest.mark.parametrize("total", [None, 0])
def test_plans_without_tokens_owe_nothing_early(total: int | None) -> None:
    had = TokenTerms(total, "block", "monthly", "UTC", 1)
    assert plan_end(ended("30.00", APRIL, date(2026, 4, 10)), had, None) is None


@pytest.mark.parametrize(
    ("terms", "end", "worth", "paid", "paid_from"),
    [
        # Of April's thirty days nine were had.
        (("monthly", "UTC", 1), date(2026, 4, 10), "30", "9", APRIL),
        # A week from Monday, 6 April; three of its days.
        (("weekly", "UTC", 1), date(2026, 4, 9), "7", "3", date(2026, 4, 6)),
        # Whole days were had wholly.
        (("daily", "UTC", 1), date(2026, 4, 10), "1", "1", date(2026, 4, 9)),
        # A cycle of tokens from the 5th on, that lies in two of the fee: 26 days of April, 4 of May.
        (("monthly", "UTC", 5), date(2026, 4, 10), str(26 + Decimal(30 * 4) / 31), "5", date(2026, 4, 5)),
        # In Berlin April begins on the last evening of March.
        (("monthly", "Europe/Berlin", 1), date(2026, 4, 10), None, "9", date(2026, 3, 31)),
        # Tokens that are given once are paid by all days there were.
        (("none", "UTC", 1), date(2026, 6, 11), "30", "70", APRIL),
    ],
)
def test_which_days_pay_for_tokens(
    terms: tuple[str, str, int], end: date, worth: str | None, paid: str, paid_from: date
) -> None:
    found = plan_end(ended("30.00", APRIL, end), TokenTerms(1_000, "block", *terms), None)
    assert found is not None
    assert found.paid_from == paid_from
    # June's ten days are thirds of its thirty, May's thirty-one come to a month.
    assert found.paid == Decimal(paid)
    if worth is not None:
        assert abs(found.worth - Decimal(worth)) < Decimal("0.00000001")


def test_days_of_a_trial_and_what_is_off_cost_less_in_all() -> None:
    trial = ended("300.00", APRIL, date(2026, 4, 21), trial_end=date(2026, 4, 16))
    found = plan_end(trial, BLOCKS, None)
    assert found is not None
    assert (found.worth, found.paid) == (150, 50)
    for day in (11, 16):
        within = ended("300.00", APRIL, date(2026, 4, day), trial_end=date(2026, 4, 16))
        assert plan_end(within, BLOCKS, None) is None
    half = ended("300.00", APRIL, date(2026, 4, 11), discount_rate=Decimal("0.5"))
    found = plan_end(half, BLOCKS, None)
    assert found is not None
    assert (found.worth, found.paid) == (150, 50)


RESET = datetime(2026, 4, 1, tzinfo=UTC)
ENDS = datetime(2026, 5, 1, tzinfo=UTC)


def turn(day: int, remaining: int | None, moved: int, *, reset: bool = False, month: int = 4) -> PlanStart:
    return PlanStart(datetime(2026, month, day, tzinfo=UTC), reset, remaining, moved)


@pytest.mark.parametrize(
    ("turns", "used"),
    [
        # 1,000 were there, 300 of them were left as the plan went.
        ([turn(1, 1_000, 1_000, reset=True), turn(9, None, -300)], 700),
        # Beyond the plan is not of it.
        ([turn(1, 1_000, 1_000, reset=True), turn(9, None, 200)], 1_000),
        # What was rolled over or recharged is used first.
        ([turn(1, 1_600, 1_600, reset=True), turn(9, None, -900)], 100),
        ([turn(1, 1_000, 1_000, reset=True), turn(9, None, -1_400)], 0),
        # A smaller plan before: 100 of its 200 used, then 500 more.
        ([turn(1, 200, 200, reset=True), turn(5, 900, 800), turn(9, None, -400)], 600),
        # Given again within the cycle: what was used before is not of this one.
        (
            [
                turn(1, 1_000, 1_000, reset=True), turn(4, None, -600), turn(4, 600, 600),
                turn(9, None, -500),
            ],
            100,
        ),
        # The cycle was over before the plan went.
        ([turn(1, 1_000, 1_000, reset=True), turn(1, 1_000, 800, reset=True, month=5),
          turn(1, None, -1_000, month=5)], 800),
        # Never used, never begun.
        ([turn(9, None, 0, reset=True)], 0),
        ([turn(1, None, 0, reset=True), turn(9, 1_000, 1_000), turn(10, None, -1_000)], 0),
    ],
)  # fmt: skip
def test_what_was_used_of_a_plan(turns: list[PlanStart], used: int) -> None:
    assert tokens_used(turns, 1_000, ENDS) == used


def test_what_costs_nothing_owes_nothing() -> None:
    free = PlanEnd(1_000, 0, Decimal(0), Decimal(0), APRIL, APRIL, ENDS, APRIL)
    assert alone(free, 1_000) == EarlyUse(0, Decimal(0), Decimal(0))
