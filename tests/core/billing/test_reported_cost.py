"""What providers say that a call cost is read to the billionth of a dollar, or not at all."""

from __future__ import annotations

import json
import re
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import pytest

from gateway.core.billing.price_book import read_price
from gateway.core.billing.reported_cost import ReportedCost, are_apart, read_cost
from gateway.core.metering.meters import make_meter
from tests.core.billing.prices import price_row
from tests.recorded.answers import Answer, answers

_NAMED = re.compile(rb'"(cost|cost_in_usd_ticks)": ([0-9.e+-]+)')


def told(answer: Answer) -> list[int]:
    """The costs in the bytes of a recorded answer, in nano-dollars."""
    scale = {b"cost": 9, b"cost_in_usd_ticks": -1}
    found = [Decimal(number.decode()).scaleb(scale[name]) for name, number in _NAMED.findall(answer.body)]
    return [int(one.to_integral_value(ROUND_HALF_UP)) for one in found]


TELLING = [one for one in answers() if told(one)]


def test_both_kinds_of_recordings_tell_a_cost() -> None:
    assert {one.family for one in TELLING} >= {"openrouter", "xai"}


@pytest.mark.parametrize("answer", TELLING, ids=lambda one: one.name)
def test_the_cost_in_a_recorded_answer_is_read(answer: Answer) -> None:
    meter = make_meter(answer.call, 200, answer.content_type)
    for at in range(0, len(answer.body), 700):
        meter.feed(answer.body[at : at + 700])
    meter.finish()
    meter.usage()
    assert meter.detail.cost == max(told(answer))


@pytest.mark.parametrize(
    ("report", "nano"),
    [
        ({"cost": {"total_cost": 0.021, "request_cost": 0.006}}, 21_000_000),
        ({"cost": {"total_cost": 0.021, "currency": "usd"}}, 21_000_000),
        ({"cost": {"total_cost": 0.021, "currency": "EUR"}}, None),
        ({"cost": {}}, None),
        ({"cost": 0}, 0),
        ({"cost": "0.0000000015"}, 2),
        ({"cost": 100_000}, 10**14),
        ({"cost": 100_000.01}, None),
        ({"cost": -0.1}, None),
        ({"cost": "NaN"}, None),
        ({"cost": "Infinity"}, None),
        ({"cost": True}, None),
        ({"cost": None}, None),
        ({"cost": "1E-999999"}, 0),
        ({"cost": "1E+999999"}, None),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, 210_000_000),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": 0.01, "is_byok": True}, None),
        ({"cost": 0.01, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.2}}, 10_000_000),
        ({"cost_in_usd_ticks": 11_610_001}, 1_161_000),
        ({"prompt_tokens": 1}, None),
        ([], None),
    ],
)
def test_a_cost_is_sane_and_in_dollars_or_none(report: Any, nano: int | None) -> None:
    assert read_cost(json.dumps(report).encode()) == nano


def test_a_cost_is_converted_as_prices_are() -> None:
    def price(currency: str) -> Any:
        return read_price(price_row(currency=currency, input="1")).vector

    euros = ReportedCost(21_000_001, "EUR", "0.92")
    expected = int(Fraction(21_000_001) * Fraction("0.92") + Fraction(1, 2))
    assert [euros.in_currency_of(one) for one in (None, price("EUR"))] == [expected, expected]
    assert euros.in_currency_of(price("USD")) == 21_000_001
    assert euros.in_currency_of(price("CHF")) is None
    assert [ReportedCost(5).in_currency_of(one) for one in (None, price("USD"), price("EUR"))] == [5, 5, None]


def test_costs_are_apart_by_more_than_a_tenth_of_the_larger() -> None:
    assert [are_apart(90, 100), are_apart(89, 100), are_apart(100, 89), are_apart(0, 0)] == [
        False, True, True, False,
    ]  # fmt: skip
