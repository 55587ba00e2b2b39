"""Services that organizations pay for: credits as callers and administrators see them."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx2 as httpx
import pytest

from tests import plain_http
from tests.journey.stack import Body
from tests.stage import Stage
from tests.waiting import wait_until


class Buyer:
    """An organization with a tenant without a plan, and services of its own."""

    def __init__(self, stage: Stage, **organization: Any) -> None:
        self.stack = stage
        name = f"buyer {time.monotonic_ns()}"
        self.id = stage.make("organizations", name=name, **organization)["id"]
        tenant = stage.make("tenants", name=name, organization_id=self.id)
        key = stage.make("api-keys", tenant_id=tenant["id"])["key"]
        self.headers = {"authorization": f"Bearer {key}"}
        models = stage.admin("GET", "/business-models?limit=100")[1]["items"]
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
def buyer(stage: Stage) -> Buyer:
    return Buyer(stage)


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
