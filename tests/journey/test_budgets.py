"""Budgets from the Admin API to a refusal and back: made, used up, raised, reset, everybody's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.journey.budgets import Spender
from tests.stage import Stage
from tests.waiting import wait_until


@pytest.fixture
def spender(stage: Stage) -> Spender:
    return Spender(stage)


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
    spender.budget(1, "requests")
    spender.until(429)
    assert spender.stack.admin("PATCH", organization, said)[0] == 200
    refused = spender.until(402)
    assert (refused.headers["x-tollkeeper-reason"], refused.headers["x-should-retry"]) == (
        "budget_exceeded", "false",
    )  # fmt: skip
    assert int(refused.headers["retry-after"]) <= 600


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
