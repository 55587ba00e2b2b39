"""What a caller may still hold, told in the unit of its hold and in no other."""

from __future__ import annotations

import json

import pytest

from gateway.core.accounts.budgets import FLAG_MONEY, FLAG_TOKENS, MONEY, TOKENS
from gateway.core.accounts.caller_holds import CallerHold, HeldAmounts, HoldBody, read_body
from gateway.core.billing.price_book import read_price
from gateway.core.model import Admitted, BudgetWindow, Service
from gateway.errors import InvalidRequest
from gateway.features.caller_holds.gateway import UNITS, _dearer_ms, _remaining
from tests.core.billing.prices import price_row
from tests.http.fakes import FakeDirectory

PRICED, FREE = Service(1, "search", "consumption", counts_tokens=False, credits=3), Service(2, "chat")
MONEY_LEFT, TOKENS_LEFT = BudgetWindow(1, 100, 70, 0, FLAG_MONEY), BudgetWindow(1, 100, 95, 0, FLAG_TOKENS)


@pytest.mark.parametrize(
    ("unit", "service", "window", "remaining"),
    [
        (TOKENS, FREE, None, 40), (TOKENS, FREE, TOKENS_LEFT, 5), (TOKENS, FREE, MONEY_LEFT, 40),
        (UNITS, PRICED, TOKENS_LEFT, 6), (UNITS, FREE, None, None),
        (MONEY, PRICED, MONEY_LEFT, 30), (MONEY, FREE, TOKENS_LEFT, None),
    ],
)  # fmt: skip
def test_remaining_amount_of_a_hold_is_the_smallest_limit_in_the_unit_of_the_hold(
    unit: str, service: Service, window: BudgetWindow | None, remaining: int | None
) -> None:
    decision = Admitted(tokens_remaining=40, credits_remaining=20, budget=window)
    assert _remaining(decision, service, unit) == remaining


def test_remaining_units_of_a_hold_are_zero_with_a_negative_credit_balance() -> None:
    assert _remaining(Admitted(credits_remaining=-4), PRICED, UNITS) == 0


@pytest.mark.parametrize("name", ["gpt-4o\0x", "gpt\u202eo4", "gpt\n", "a,b", " gpt"])
def test_hold_request_with_a_malformed_model_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_body(HoldBody, json.dumps({"service": "chat", "model": name}).encode())
    assert refusal.value.param == "model"


HOUR_MS = 3_600_000


@pytest.mark.parametrize(("factor", "now_ms", "priced_ms"), [
    ("2", HOUR_MS - 1, 5), ("2", HOUR_MS, HOUR_MS), ("2", 2 * HOUR_MS, 5), ("0.5", HOUR_MS, 5),
])  # fmt: skip
def test_extended_hold_has_the_price_of_a_dearer_hour_alone(factor: str, now_ms: int, priced_ms: int) -> None:
    """It was taken at midnight of 1 January 1970, a Thursday, and the hours are the second of that day."""
    span = {"days": [4], "from": "01:00", "to": "02:00", "time_zone": "UTC", "factor": factor}
    directory = FakeDirectory()
    directory.prices["m"] = read_price(price_row(input="1", hours=[span])).vector
    amounts = HeldAmounts(0, 0, 1, 0, 0)
    hold = CallerHold("", 1, 2, 3, 0, FREE, MONEY, 1, amounts, 5, 9, "charge", model="m")
    assert _dearer_ms(directory, hold, now_ms) == priced_ms
