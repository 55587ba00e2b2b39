"""Budgets from the Admin API to a refusal and back: made, used up, raised, reset, everybody's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.journey.budgets import Spender, cost
from tests.journey.stack import Stack
from tests.waiting import wait_until


@pytest.fixture
def spender(stack: Stack) -> Spender:
    return Spender(stack)


def test_a_budget_of_requests_is_in_force_is_used_up_and_says_so(spender: Spender) -> None:
    budget = spender.budget(3, "requests", time_zone="Pacific/Auckland")
    refused = spender.until(429)
    assert refused.headers["x-tollkeeper-reason"] == "budget_exceeded"
    assert refused.headers["x-tollkeeper-refused-by"] == "budget"
    shown = spender.shown(budget)
    assert (shown["used"], shown["held"], shown["remaining"]) == (3, 0, 0)
    resets = datetime.fromisoformat(shown["resets_at"])
    assert datetime.now(UTC) < resets <= datetime.now(UTC) + timedelta(hours=25)
    assert spender.stack.admin("DELETE", f"/budgets/{budget['id']}")[0] == 204
    spender.until(200)


def test_an_organization_has_it_told_by_402(spender: Spender) -> None:
    organization = f"/organizations/{spender.organization}"
    said = {"spent_status": 402, "retry_after_max_s": 600}
    assert spender.stack.admin("PATCH", organization, said)[0] == 200
    spender.budget(1, "requests")
    refused = spender.until(402)
    assert (refused.headers["x-tollkeeper-reason"], refused.headers["x-should-retry"]) == (
        "budget_exceeded", "false",
    )  # fmt: skip
    assert int(refused.headers["retry-after"]) <= 600


def test_a_raise_ends_by_itself(spender: Spender) -> None:
    budget = spender.budget(1, "requests", interval="total")
    spender.until(429)
    until = datetime.now(UTC) + timedelta(seconds=10)
    said = until.isoformat().replace("+00:00", "Z")
    spender.do(budget, "raise", amount=10**6, until=said, reason="a fair")
    spender.everywhere(200)
    assert spender.shown(budget)["raised_to"] == 10**6
    spender.until(429)
    assert datetime.now(UTC) >= until
    assert spender.shown(budget)["raised_to"] is None


def test_a_reset_begins_at_0_once(spender: Spender) -> None:
    budget = spender.budget(2, "requests", interval="month")
    each = spender.budget(10**6, "requests", interval="month", each="user")
    spender.until(429, user="ada")
    assert spender.used(budget) == 2
    assert spender.do(budget, "reset")["used"] == 0
    spender.until(200, user="ada")
    spender.until(429, user="ada")
    wait_until(lambda: [(one["who"], one["used"] > 1) for one in spender.accounts(each)] == [("ada", True)])
    spender.do(each, "reset")
    wait_until(lambda: [(one["who"], one["used"]) for one in spender.accounts(each)] == [("ada", 0)])


def test_money_is_what_calls_cost(spender: Spender) -> None:
    amount = Decimal("0.001")
    budget = spender.budget(amount, interval="year")
    # Both the budget and the price are known to every worker once calls are refused by what they would cost.
    spender.everywhere(429, body={"max_tokens": 2000})
    before = spender.used(budget)
    assert spender.chat("20,40").status_code == 200
    shown = spender.shown(budget)
    assert Decimal(shown["used"]) - before == cost(20, 40)
    assert Decimal(shown["used"]) + Decimal(shown["remaining"]) == amount


def test_of_many_calls_at_once_as_many_as_there_is_amount_are_admitted(spender: Spender) -> None:
    budget = spender.budget(1, "requests", interval="total")
    spender.until(429)
    spender.do(budget, "raise", amount=4, until="2999-01-01T00:00:00Z", reason="three more")
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: spender.chat().status_code, range(100)))
    wait_until(lambda: answers.append(spender.chat().status_code) is None and spender.used(budget) == 4)
    assert answers.count(200) == 3
    assert set(answers) == {200, 429}


def test_everybody_has_an_amount_and_is_listed(spender: Spender) -> None:
    budget = spender.budget(2, "requests", interval="month", each="user")
    spender.until(429, user="ada")
    assert spender.chat(user="bob").status_code == 200
    wait_until(
        lambda: {one["who"]: one["remaining"] for one in spender.accounts(budget)} == {"ada": 0, "bob": 1}
    )
