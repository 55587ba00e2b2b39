"""What was sold or used a moment ago counts: who owes is not deleted, and amounts keep their currency."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import redis

from gateway.counters.layouts.states import TenantState, unpack
from tests import plain_http
from tests.journey.stack import ANSWER_S_MAX, Body
from tests.journey.test_money import in_force
from tests.stage import Stage
from tests.waiting import wait_until

TRIES, AT_ONCE = 3, 8


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

    def call(self, **fields: Any) -> None:
        in_force(lambda: self.chat(**fields))

    def chat(self, **fields: Any) -> httpx.Response:
        return self.stage.chat(self.key, usage="1,1", model=self.model, **fields)


def open_calls(stage: Stage, tenant_id: int) -> int:
    """Return the number of calls of a tenant that the counters have open."""
    with redis.Redis.from_url(stage.redis_url) as client:
        [name] = client.scan_iter(f"tk:{{p*}}:t:{tenant_id}")
        return unpack(TenantState, client.get(name)).inflight


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


def test_of_a_sale_and_a_deletion_at_once_one_is_refused(stage: Stage) -> None:
    sale = {"credits_added": 1_000, "unit_cost": "0.10", "category": "paid"}
    with ThreadPoolExecutor(2) as clients:
        for _ in range(AT_ONCE):
            organization = organization_of(stage, currency="USD")["id"]
            path = f"/organizations/{organization}"
            sold = clients.submit(
                stage.admin, "POST", "/credit-additions", {**sale, "organization_id": organization}
            )
            gone = clients.submit(stage.admin, "DELETE", path)
            statuses = sold.result()[0], gone.result()[0]
            assert statuses in {(201, 409), (202, 409), (422, 204), (422, 202)}, statuses
            if statuses[1] == 409:
                assert "USD 100 of credits_purchased" in delete(stage, path)[1]


def test_a_call_that_has_not_ended_keeps_its_tenant_its_organization_and_their_currency(stage: Stage) -> None:
    user = User(stage)
    user.call()
    tenant, organization = f"/tenants/{user.tenant}", f"/organizations/{user.organization}"
    with ThreadPoolExecutor(1) as clients:
        call = clients.submit(user.chat, x_demo_delay_s="3")
        wait_until(lambda: open_calls(stage, user.tenant) == 1)
        assert delete(stage, f"/api-keys/{user.key_id}")[0] == 204
        for refused in (
            stage.admin("DELETE", tenant),
            stage.admin("PATCH", organization, {"currency": "JPY"}),
        ):
            assert refused[0] == 409, refused
            assert "still open" in refused[1]["detail"]
        assert not call.done()
        assert call.result().status_code == 200
    assert delete(stage, tenant)[0] == 204
    status, why = delete(stage, organization)
    assert status == 409
    assert "USD 50 of usage" in why


def test_a_hold_that_is_open_keeps_its_tenant_and_its_organization(stage: Stage) -> None:
    user = User(stage)
    user.call()
    holds, headers = f"{stage.gateway_url}/.tollkeeper/holds", {"authorization": f"Bearer {user.key}"}
    asked = {"service": "chat", "model": user.model, "max_tokens": 10}
    hold = plain_http.post(holds, json=asked, headers=headers, timeout=ANSWER_S_MAX)
    assert hold.status_code == 201, hold.text
    changed = stage.admin("PATCH", f"/organizations/{user.organization}", {"currency": "JPY"})
    assert changed[0] == 409
    assert "still open" in changed[1]["detail"]
    settled = plain_http.post(
        f"{holds}/{hold.json()['id']}/settle", json={"usage": {"input": 1, "output": 1}}, headers=headers,
        timeout=ANSWER_S_MAX,
    )  # fmt: skip
    assert settled.status_code == 200, settled.text
    assert delete(stage, f"/api-keys/{user.key_id}")[0] == 204
    assert delete(stage, f"/tenants/{user.tenant}")[0] == 204
    assert "USD 50 of usage" in delete(stage, f"/organizations/{user.organization}")[1]
