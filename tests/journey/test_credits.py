"""Services that organizations pay for: credits and prices as callers and administrators see them."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest

from tests import plain_http
from tests.journey.stack import Body, Stack
from tests.waiting import wait_until

PARALLEL = 100


class Buyer:
    """An organization with a tenant without a plan, and services of its own."""

    def __init__(self, stack: Stack, **organization: Any) -> None:
        self.stack = stack
        name = f"buyer {time.monotonic_ns()}"
        self.id = stack.make("organizations", name=name, **organization)["id"]
        tenant = stack.make("tenants", name=name, organization_id=self.id)
        key = stack.make("api-keys", tenant_id=tenant["id"])["key"]
        self.headers = {"authorization": f"Bearer {key}"}
        models = stack.admin("GET", "/business-models?limit=100")[1]["items"]
        self.models = {model["name"]: model["id"] for model in models}

    def service(self, model: str = "Consumption", credits: int = 0, **fields: Any) -> Body:  # noqa: A002  # as the API names it
        """A new service that every worker knows."""
        key = f"svc-{os.urandom(4).hex()}"
        values: Body = {"service_type": "Pay-As-You-Go", "counts_tokens": False} | fields
        made = self.stack.make(
            "services", key=key, name=key, credits=credits, business_model_id=self.models[model], **values
        )
        other = self.stack.api_key
        url = f"{self.stack.gateway_url}/services/{key}/"
        headers = {"authorization": f"Bearer {other}"}

        def known() -> bool:
            return all(
                plain_http.get(url, headers=headers | {"x-demo-status": "500"}, timeout=60).status_code != 404
                for _ in range(16)
            )

        wait_until(known)
        return made

    def give(self, credits_added: int) -> None:
        self.stack.make("credit-additions", organization_id=self.id, credits_added=credits_added)

    def call(self, service: Body, **fields: str) -> httpx.Response:
        url = f"{self.stack.gateway_url}/services/{service['key']}/x"
        headers = self.headers | {name.replace("_", "-"): value for name, value in fields.items()}
        return plain_http.post(url, headers=headers, timeout=60)

    def rows(self, resource: str, count: int) -> list[Body]:
        """The organization's rows, oldest first, once there are so many."""
        path = f"/{resource}?organization_id={self.id}&limit=1000"
        found: list[Body] = wait_until(
            lambda: len(r := self.stack.admin("GET", path)[1]["items"]) >= count and r
        )
        assert len(found) == count
        return sorted(found, key=lambda row: row["id"])


@pytest.fixture
def buyer(stack: Stack) -> Buyer:
    return Buyer(stack)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.headers.get("x-tollkeeper-reason", "")


def test_credits_are_spent_by_the_unit_until_they_do_not_cover_a_call(buyer: Buyer) -> None:
    service = buyer.service(credits=8)
    assert refusal(buyer.call(service)) == (402, "insufficient_credits")
    buyer.give(20)
    first = buyer.call(service)
    assert (first.status_code, first.headers["x-tollkeeper-credits-remaining"]) == (200, "12")
    assert buyer.call(service, x_demo_units="2").status_code == 200
    assert refusal(buyer.call(service)) == (402, "insufficient_credits")
    rows = buyer.rows("credit-transactions", 2)
    assert [(row["credits_used"], row["balance_after"]) for row in rows] == [(8, 12), (16, -4)]
    assert rows[0]["request_id"] == first.headers["x-request-id"]


def test_a_negotiated_price_comes_into_force(buyer: Buyer) -> None:
    service = buyer.service(credits=8)
    buyer.give(left := 1_000_000)

    def cost() -> int:
        nonlocal left
        before, left = left, int(buyer.call(service).headers["x-tollkeeper-credits-remaining"])
        return before - left

    assert cost() == 8
    override = buyer.stack.make(
        "organization-services", organization_id=buyer.id, service_id=service["id"], negotiated_credits=6
    )
    wait_until(lambda: cost() == 6)
    buyer.stack.admin("PATCH", f"/organization-services/{override['id']}", {"negotiated_credits": 0})
    wait_until(lambda: cost() == 0)
    path = f"/credit-transactions?organization_id={buyer.id}&limit=1000"
    rows: list[Body] = wait_until(
        lambda: (r := buyer.stack.admin("GET", path)[1]["items"]) and r[-1]["credits_used"] == 0 and r
    )
    assert {row["credits_used"] for row in rows} == {8, 6, 0}
    assert rows[0]["credits_used"] == 8


def test_a_credit_limit_lends(stack: Stack) -> None:
    buyer = Buyer(stack, credit_limit=10)
    service = buyer.service(credits=10)
    assert [buyer.call(service).status_code for _ in range(2)] == [200, 402]


def test_one_time_is_paid_once_under_a_hundred_first_calls(buyer: Buyer) -> None:
    service = buyer.service(credits=500, service_type="One-Time")
    buyer.give(500)
    with ThreadPoolExecutor(PARALLEL) as pool:
        failed = list(pool.map(lambda _: buyer.call(service, x_demo_status="500"), range(10)))
        assert {answer.status_code for answer in failed} == {500}
        answers = list(pool.map(lambda _: buyer.call(service), range(PARALLEL)))
    assert {answer.status_code for answer in answers} == {200}
    (paid,) = buyer.rows("credit-transactions", 1)
    assert (paid["credits_used"], paid["balance_after"]) == (500, 0)
    assert buyer.call(service).status_code == 200


def test_tokens_are_priced_by_model_and_kind(buyer: Buyer) -> None:
    chat = next(one for one in buyer.stack.admin("GET", "/services?key=chat")[1]["items"])
    prices = {"demo-small": {"input": 1_000_000, "output": 3_000_000, "cached": 0}}
    buyer.stack.make(
        "organization-services", organization_id=buyer.id, service_id=chat["id"], negotiated_credits=1,
        business_model_id=buyer.models["Consumption"], pricing={"per_million": prices},
    )  # fmt: skip
    buyer.give(500)  # what the call could cost at most is held
    key = buyer.headers["authorization"].removeprefix("Bearer ")
    answer = wait_until(lambda: (r := buyer.stack.chat(key, usage="10,20")).status_code == 200 and r)
    used = answer.json()["usage"]
    (paid,) = buyer.rows("credit-transactions", 1)
    assert paid["credits_used"] == used["prompt_tokens"] + 3 * used["completion_tokens"]


def test_subscription_services_need_a_plan_or_a_subscription_in_force(buyer: Buyer) -> None:
    service = buyer.service("Subscription")
    assert refusal(buyer.call(service)) == (403, "service_not_included")
    plan = buyer.stack.make(
        "subscription-plans", name=service["key"], monthly_cost="1.00", annual_cost="10.00",
        feature_access=[service["key"]],
    )  # fmt: skip
    subscription = buyer.stack.make(
        "organization-subscriptions", organization_id=buyer.id, plan_id=plan["id"],
        start_date=time.strftime("%Y-%m-%d", time.gmtime()), end_date="2199-01-01",
    )  # fmt: skip
    wait_until(lambda: buyer.call(service).status_code == 200)
    status, _ = buyer.stack.admin("PATCH", f"/subscription-plans/{plan['id']}", {"feature_access": []})
    assert status == 200
    wait_until(lambda: refusal(buyer.call(service)) == (403, "service_not_included"))
    buyer.stack.admin("POST", f"/organization-subscriptions/{subscription['id']}/cancel", {"when": "now"})


def test_units_climb_the_tiers_until_the_cap_is_reached(stack: Stack) -> None:
    buyer = Buyer(stack, spend_cap="0.012")
    tiers = [{"up_to": 10, "unit_price": "0.001"}, {"up_to": None, "unit_price": "0.0008"}]
    service = buyer.service("Pay-Per-Use", pricing={"tiers": tiers})
    assert [buyer.call(service, x_demo_units=units).status_code for units in ("6", "6")] == [200, 200]
    assert refusal(buyer.call(service)) == (402, "spend_cap_reached")
    rows = buyer.rows("feature-usage", 2)
    assert [row["usage_amount"] for row in rows] == [6, 6]
    spent = stack.rows(
        f"select spend, spent_after from feature_usage where organization_id = {buyer.id} order by seq"
    )
    assert spent == [(6000, 6000), (5600, 11_600)]
    assert stack.admin("PATCH", f"/organizations/{buyer.id}", {"spend_cap": "1"})[0] == 200
    wait_until(lambda: buyer.call(service).status_code == 200)


def test_an_organization_uses_all_services_until_it_has_a_list(buyer: Buyer) -> None:
    given, other = buyer.service(credits=1), buyer.service(credits=0)
    buyer.give(100)
    buyer.stack.make(
        "organization-services", organization_id=buyer.id, service_id=given["id"], negotiated_credits=1
    )
    assert {buyer.call(service).status_code for service in (given, other)} == {200}
    assert buyer.stack.admin("PATCH", f"/organizations/{buyer.id}", {"services": "listed"})[0] == 200
    wait_until(lambda: [refusal(buyer.call(other)) for _ in range(8)] == [(403, "service_not_included")] * 8)
    assert buyer.call(given).status_code == 200
