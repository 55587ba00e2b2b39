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


def test_used_up_budget_is_refused_by_the_status_of_its_organization(spender: Spender) -> None:
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


def test_a_raise_of_one_raises_one(spender: Spender) -> None:
    """Everybody has 3; Ada asks for 6 and gets it, Bob keeps 3, and both are told their own."""
    each = spender.budget(3, "requests", each="user", thresholds=[1])
    spender.known(each, user="ada")
    for user in ("ada", "bob"):
        refused = [spender.until(429, user=user), spender.chat(user=user)]
        assert {one.headers["x-tollkeeper-reason"] for one in refused} == {"budget_exceeded"}
    asked = spender.stack.make("raise-requests", budget_id=each["id"], amount=6, reason="release", who="ada")
    assert asked["who"] == "ada"
    status, _ = spender.stack.admin("POST", f"/raise-requests/{asked['id']}/approve")
    assert status == 200
    answered = spender.until(200, user="ada")
    assert "q=6;" in answered.headers["ratelimit-policy"]
    assert '"budget";r=2' in answered.headers["ratelimit"]
    assert spender.told(each, user="ada")["limit_by"] == "raise"
    spender.until(429, user="ada")
    assert spender.chat(user="bob").status_code == 429
    told = wait_until(
        lambda: (
            len(found := {one["who"]: one for one in spender.accounts(each)}) == 2
            and found["ada"]["used"] == 6
            and found
        )
    )
    figures = {who: (one["limit"], one["limit_by"], one["used"]) for who, one in told.items()}
    assert figures == {"ada": (6, "raise", 6), "bob": (3, "budget", 3)}
    # Everybody has more by a raise of all, and the one that is raised has the larger of both.
    later = "2999-01-31T00:00:00Z"
    assert spender.do(each, "raise", amount=5, until=later, reason="a fair")["raised_to"] == 5
    spender.until(200, user="bob")
    assert spender.chat(user="ada").status_code == 429
    assert {one["limit"] for one in spender.accounts(each)} == {5, 6}


def test_a_raise_of_one_ends_by_itself(spender: Spender) -> None:
    each = spender.budget(1, "requests", each="key")
    spender.until(429)
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4)
    spender.do(
        each, "raise", amount=10**6, until=until.isoformat().replace("+00:00", "Z"), reason="a fair",
        who=str(spender.key_id),
    )  # fmt: skip
    spender.until(200)
    refused = spender.until(429)
    assert datetime.now(UTC) >= until
    assert refused.headers["x-tollkeeper-reason"] == "budget_exceeded"
    assert spender.told(each)["limit"] == 1


def test_override_is_in_force_until_removal_and_moves_no_use(spender: Spender) -> None:
    """Of everybody's 3 Ada has 5, then 1, then no limit, then 3 again; Bob has nothing."""
    each = spender.budget(3, "requests", each="user")
    spender.known(each, user="ada")

    def override(who: str, amount: int | None) -> None:
        path = f"/budgets/{each['id']}/overrides/{who}"
        assert spender.stack.admin("PUT", path, {"amount": amount})[0] == 200

    override("bob", 0)
    spender.until(429, user="bob")
    override("ada", 5)
    wait_until(lambda: spender.told(each, user="ada")["limit_by"] == "override")
    spender.until(429, user="ada")
    told = spender.told(each, user="ada")
    assert (told["limit"], told["used"], told["remaining"]) == (5, 5, 0)
    override("ada", None)
    answered = spender.until(200, user="ada")
    assert '"budget"' not in answered.headers.get("ratelimit", "")
    told = spender.told(each, user="ada")
    assert (told["limit"], told["limit_by"], told["remaining"]) == (None, "override", None)
    override("ada", 1)
    refused = spender.until(429, user="ada")
    assert refused.headers["x-tollkeeper-reason"] == "budget_exceeded"
    used = spender.told(each, user="ada")["used"]
    assert used >= 6
    assert spender.stack.admin("DELETE", f"/budgets/{each['id']}/overrides/ada")[0] == 204
    wait_until(lambda: spender.told(each, user="ada")["limit_by"] == "budget")
    assert spender.told(each, user="ada")["used"] == used
    assert spender.chat(user="bob").status_code == 429


def test_each_tenant_has_its_own_amount_whoever_calls(spender: Spender) -> None:
    other = spender.stack.make("tenants", name="another team", organization_id=spender.organization)
    _, key = spender.another_key()
    each = spender.budget(2, "requests", each="tenant")
    spender.known(each)
    refused = [spender.until(429, user="ada"), spender.chat(key=key), spender.chat(user="bob")]
    assert {one.headers["x-tollkeeper-reason"] for one in refused} == {"budget_exceeded"}
    path = f"/budgets/{each['id']}/overrides/{spender.tenant}"
    assert spender.stack.admin("PUT", path, {"amount": 3})[0] == 200
    spender.until(200)
    wait_until(
        lambda: (
            [(one["who"], one["limit"], one["limit_by"], one["used"]) for one in spender.accounts(each)]
            == [(str(spender.tenant), 3, "override", 3)]
        )
    )
    assert (
        spender.stack.admin("PUT", f"/budgets/{each['id']}/overrides/{other['id']}", {"amount": 9})[0] == 200
    )
