"""What one event moves and costs."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.plans import Weights
from gateway.core.billing import events
from gateway.core.billing.events import AMOUNT_MAX, EventUsage, Unacceptable, counts_of, request_of, use_of
from gateway.core.billing.money import CostMarkup, CreditRates, PriceTier, ServicePricing
from gateway.core.billing.price_book import KINDS, Vector, cost_nano
from gateway.core.model import Service

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
    assert (chat.counts_tokens, chat.tokens, chat.weighed, chat.units, chat.credits) == (True, 15, 15, 0, 0)
    assert (units.counts_tokens, units.units, units.credits) == (False, 4, 0)
    assert (credits_.credits, credits_.units) == (12, 0)
    assert (used(BY_TOKEN).credits, used(BY_TOKEN).over) == (20, 0)
    assert used(AT_COST).units == cost_nano(PRICE, told().counts) * 3 // 2


def test_tokens_of_a_cycle_that_is_over_move_no_quota() -> None:
    weights = Weights.of({"output": 2_000_000})
    late = use_of(told(), 7, CHAT, PRICE, weights, in_cycle=False)
    assert (late.counts_tokens, late.weighed) == (False, 20)


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
