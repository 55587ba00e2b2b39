"""What was sold or used a moment ago counts: who owes is not deleted, and amounts keep their currency."""

from __future__ import annotations

import time

from tests.journey.stack import Body
from tests.journey.test_money import in_force
from tests.stage import Stage
from tests.waiting import wait_until

TRIES = 3


def organization_of(stage: Stage, **fields: object) -> Body:
    return stage.make("organizations", name=f"owes {time.monotonic_ns()}", **fields)


def delete(stage: Stage, path: str) -> tuple[int, str]:
    """Return the status of a deletion, and its words; asked again while not all is stored."""
    status, body = wait_until(lambda: "try again" not in str(said := stage.admin("DELETE", path)) and said)
    return status, str((body or {}).get("detail", ""))


class User:
    """A tenant of an organization that pays 25.00 a call."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.organization = stage, organization_of(stage, currency="USD")["id"]
        plan = stage.make("token-plans", name=f"any {time.monotonic_ns()}", total_amount=None)
        self.tenant = stage.make(
            "tenants", name="web", organization_id=self.organization, plan_id=plan["id"]
        )["id"]
        made = stage.make("api-keys", tenant_id=self.tenant)
        self.key_id, self.key = made["id"], made["key"]
        [chat] = stage.admin("GET", "/services?key=chat")[1]["items"]
        [by_use] = stage.admin("GET", "/business-models?name=Pay-Per-Use")[1]["items"]
        stage.make(
            "organization-services", organization_id=self.organization, service_id=chat["id"],
            negotiated_credits=0, business_model_id=by_use["id"], pricing={"at_cost": {"markup": "1"}},
        )  # fmt: skip
        self.model = f"costly-{time.monotonic_ns()}"
        stage.make(
            "prices", model=self.model, currency="USD", effective_from="2026-01-01T00:00:00Z", request="25"
        )

    def call(self) -> None:
        in_force(lambda: self.stage.chat(self.key, usage="1,1", model=self.model))


def test_an_organization_that_bought_credits_a_moment_ago_is_not_deleted(stage: Stage) -> None:
    for _ in range(TRIES):
        organization = organization_of(stage)["id"]
        stage.make(
            "credit-additions", organization_id=organization, credits_added=1_000, category="paid",
            unit_cost="0.05",
        )  # fmt: skip
        status, why = delete(stage, f"/organizations/{organization}")
        assert status == 409
        assert "USD 50 of credits_purchased" in why
        assert stage.admin("GET", f"/organizations/{organization}")[0] == 200


def test_an_organization_whose_tenant_used_a_moment_ago_is_not_deleted(stage: Stage) -> None:
    for _ in range(TRIES):
        user = User(stage)
        user.call()
        assert delete(stage, f"/api-keys/{user.key_id}")[0] == 204
        assert delete(stage, f"/tenants/{user.tenant}")[0] == 204
        status, why = delete(stage, f"/organizations/{user.organization}")
        assert status == 409
        assert "USD 25 of usage" in why


def test_a_currency_stays_behind_a_use_of_a_moment_ago(stage: Stage) -> None:
    for _ in range(TRIES):
        user = User(stage)
        user.call()
        changed = stage.admin("PATCH", f"/organizations/{user.organization}", {"currency": "JPY"})
        assert changed[0] == 409, changed
        assert stage.admin("GET", f"/organizations/{user.organization}")[1]["currency"] == "USD"
