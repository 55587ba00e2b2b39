"""Cycles keep their anchor day, segments never overlap, changes happen when they were asked for."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.calls.event_use import use_of
from gateway.core.accounts.weights import Weights
from gateway.core.billing import events
from gateway.core.billing.events import AMOUNT_MAX, EventUsage, Unacceptable, counts_of, request_of
from gateway.core.billing.money import CostMarkup, CreditRates, PriceTier, ServicePricing
from gateway.core.billing.price_book import KINDS, cost_nano
from gateway.core.billing.proration import PlanVersion, TokenTerms, sold_with
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
from gateway.core.billing.vector import Vector
from gateway.core.model import Service
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


@pytest.mark.parametrize(("end", "kept"), [(date(2026, 5, 2), True), (date(2026, 5, 1), False)])
def test_extending_keeps_a_change_that_waits_for_a_day_before_the_end(end: date, kept: bool) -> None:
    waiting = change_at_period_end(april(), 2, date(2026, 4, 16))
    extended = extend(waiting, end, date(2026, 4, 20))
    assert extended.end == end
    assert (extended.next_plan_id, extended.change_at) == ((2, date(2026, 5, 1)) if kept else (None, None))


def test_a_subscription_to_come_is_cancelled_on_its_first_day() -> None:
    assert cancel(april(), date(2026, 3, 1), now=True).end == date(2026, 4, 1)


def test_status_of_a_span() -> None:
    start, end = date(2026, 4, 1), date(2026, 5, 1)
    days = (date(2026, 3, 31), start, date(2026, 4, 30), end)
    assert [status(start, end, day) for day in days] == ["future", "active", "active", "over"]


def test_what_was_cancelled_before_it_began_is_over() -> None:
    assert status(date(2026, 4, 1), date(2026, 4, 1), date(2026, 3, 1)) == "over"


# --- sold -------------------------------------------------------------------------------
# A cycle of tokens keeps the terms it began with; a change is of the next one.


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


# --- events -----------------------------------------------------------------------------
# What one event moves and costs.


PRICE = Vector(9, "USD", (2_000_000_000, 0, 0, 0, 8_000_000_000, *(0,) * 5))
UNITS = Service(2, "sms", "pay_per_use", False, pricing=ServicePricing((PriceTier(None, Decimal("0.01")),)))
AT_COST = Service(3, "llm", "pay_per_use", False, pricing=ServicePricing(at_cost=CostMarkup(Decimal("1.5"))))
CREDITS = Service(4, "img", "consumption", False, credits=3)
BY_TOKEN = Service(
    5,
    "rag",
    "consumption",
    False,
    pricing=ServicePricing(per_million={"*": CreditRates(1_000_000, 2_000_000)}),
)
CHAT = Service(1, "chat")


def told(**over: Any) -> EventUsage:
    usual: dict[str, Any] = {"at_ms": 1, "model": "m", "counts": counts_of({"input": 10, "output": 5})}
    return EventUsage(**{**usual, "is_counted": True, **over})


def used(service: Service, **over: Any) -> events.EventSettlement:
    return use_of(told(**over), 7, service, PRICE, None, in_cycle=True)


def test_each_business_model_moves_its_own_account() -> None:
    chat, units, credits_ = used(CHAT), used(UNITS, units=4), used(CREDITS, units=4)
    assert (chat.counts_tokens, chat.tokens, chat.quota_tokens, chat.units, chat.credits) == (
        True,
        15,
        15,
        0,
        0,
    )
    assert (units.counts_tokens, units.units, units.credits) == (False, 4, 0)
    assert (credits_.credits, credits_.units) == (12, 0)
    assert (used(BY_TOKEN).credits, used(BY_TOKEN).over) == (20, 0)
    assert used(AT_COST).units == cost_nano(PRICE, told().counts) * 3 // 2


def test_tokens_of_a_cycle_that_is_over_move_no_quota() -> None:
    weights = Weights.of({"output": 2_000_000})
    late = use_of(told(), 7, CHAT, PRICE, weights, in_cycle=False)
    assert (late.counts_tokens, late.quota_tokens) == (False, 20)


def test_its_facts_say_when_it_was_used_and_what_by_which_price() -> None:
    facts = used(CHAT, at_ms=1234).facts
    assert (facts.used_ms, facts.route, facts.price_id, facts.cost) == (1234, "events", 9, 60_000)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_only_the_same_source_and_id_make_the_same_call(a: str, b: str, c: str, d: str) -> None:
    assert (request_of(a, b) == request_of(c, d)) == ((a, b) == (c, d))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_what_waits_for_the_counters_is_what_was_told(read: int, wrote: int, units: int) -> None:
    for service in (CHAT, UNITS, AT_COST, CREDITS, BY_TOKEN):
        one = used(service, counts=counts_of({"input": read, "output": wrote}), units=units, user="ä\tb")
        assert events.read(events.written(one)) == one


@pytest.mark.parametrize(
    ("name", "service", "over"),
    [
        ("data.usage", CHAT, {"is_counted": False}),
        ("data.model", AT_COST, {"model": ""}),
        ("data.usage", AT_COST, {"is_counted": False}),
        ("data.usage", CHAT, {"counts": (AMOUNT_MAX, *(0,) * 3, 1, *(0,) * 5)}),
        ("data.units", UNITS, {"units": AMOUNT_MAX + 1, "is_counted": False}),
        ("data.units", CREDITS, {"units": AMOUNT_MAX, "is_counted": False}),
        ("data.usage", AT_COST, {"counts": (AMOUNT_MAX, *(0,) * 9), "model": "m"}),
    ],
)  # fmt: skip
def test_what_says_too_little_or_comes_to_too_much_is_refused(
    name: str, service: Service, over: dict[str, Any]
) -> None:
    price = PRICE._replace(prices=tuple(one * 10**6 for one in PRICE.prices))
    with pytest.raises(Unacceptable) as refused:
        use_of(told(**over), 7, service, price, None, in_cycle=True)
    assert refused.value.name == name


def test_a_model_without_a_price_is_refused_where_tokens_set_the_price() -> None:
    with pytest.raises(Unacceptable, match=r"data\.model"):
        use_of(told(), 7, AT_COST, None, None, in_cycle=True)
    assert use_of(told(), 7, CHAT, None, None, in_cycle=True).facts.cost is None


@pytest.mark.parametrize(("whole", "part"), [("output", "reasoning"), ("input", "image_input")])
def test_a_part_is_no_more_than_its_whole(whole: str, part: str) -> None:
    assert counts_of({whole: 3, part: 3})[KINDS.index(part)] == 3
    with pytest.raises(Unacceptable):
        counts_of({whole: 3, part: 4})
