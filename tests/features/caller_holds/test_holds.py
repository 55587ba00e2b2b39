"""What a caller may still hold, told in the unit of its hold and in no other."""

from __future__ import annotations

import json

import pytest

from gateway.core.accounts.budgets import FLAG_MONEY, FLAG_TOKENS, MONEY, TOKENS
from gateway.core.accounts.caller_holds import HoldBody, read_body
from gateway.core.model import BudgetWindow, Decision, Service, Verdict
from gateway.errors import InvalidRequest
from gateway.features.caller_holds.gateway import UNITS, _remaining

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
    decision = Decision(Verdict.ADMITTED, tokens_remaining=40, credits_remaining=20, budget=window)
    assert _remaining(decision, service, unit) == remaining


def test_remaining_units_of_a_hold_are_zero_with_a_negative_credit_balance() -> None:
    assert _remaining(Decision(Verdict.ADMITTED, credits_remaining=-4), PRICED, UNITS) == 0


@pytest.mark.parametrize("name", ["gpt-4o\0x", "gpt\u202eo4", "gpt\n", "a,b", " gpt"])
def test_hold_request_with_a_malformed_model_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_body(HoldBody, json.dumps({"service": "chat", "model": name}).encode())
    assert refusal.value.param == "model"
