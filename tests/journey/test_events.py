"""Use that did not pass the gateway: told by events, it moves what a call moves, once, at its own time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from tests.journey.stack import Body
from tests.persistence.scenario import broken
from tests.stage import Stage
from tests.waiting import wait_until


def event(subject: str, data: Body, ago: timedelta = timedelta(), **more: Any) -> Body:
    at = datetime.now(UTC) - ago
    return {
        "specversion": "1.0", "type": "use", "source": "importer", "id": str(uuid4()), "subject": subject,
        "time": at.isoformat(), "data": data, **more,
    }  # fmt: skip


def send(stage: Stage, *events: Body) -> Body:
    status, answer = stage.admin("POST", "/events", list(events))
    assert status == 200, answer
    found: Body = answer
    return found


def calls(stage: Stage, tenant_id: int, count: int) -> list[Body]:
    """The calls of a tenant, once there are so many."""

    def found() -> list[Body] | None:
        status, answer = stage.admin("GET", f"/calls?tenant_id={tenant_id}")
        assert status == 200, answer
        return answer["items"] if len(answer["items"]) >= count else None

    rows: list[Body] = wait_until(found)
    return rows


def unbilled(stage: Stage, organization_id: int) -> dict[str, str]:
    _, answer = stage.admin("GET", f"/organizations/{organization_id}/unbilled")
    return {each["kind"]: each["amount"] for each in answer["items"]}


def agrees(stage: Stage) -> bool:
    """Whether counters and rows agree and nothing contradicts itself."""
    status, found = stage.admin("POST", "/reconciliation", {})
    assert status == 200, found
    assert (found["drift_tokens"], found["drift_credits"]) == (0, 0), found["items"]
    assert asyncio.run(broken(stage.database_url)) == []
    return True


def test_an_event_moves_what_a_call_moves_once(stage: Stage) -> None:
    organization = stage.make("organizations", name=f"events {time.monotonic_ns()}")
    plan = stage.make("token-plans", name=f"events {time.monotonic_ns()}", total_amount=1000)
    tenant = stage.make(
        "tenants", name=f"events {time.monotonic_ns()}", organization_id=organization["id"],
        plan_id=plan["id"],
    )  # fmt: skip
    model = stage.admin("GET", "/business-models?limit=100")[1]["items"]
    ids = {each["name"]: each["id"] for each in model}
    units = stage.make(
        "services", name="Sms", key=f"sms-{time.monotonic_ns()}", credits=0, service_type="Pay-As-You-Go",
        business_model_id=ids["Pay-Per-Use"], pricing={"tiers": [{"up_to": None, "unit_price": "0.25"}]},
    )  # fmt: skip
    paid = stage.make(
        "services", name="Pictures", key=f"img-{time.monotonic_ns()}", credits=3,
        service_type="Pay-As-You-Go", business_model_id=ids["Consumption"],
    )  # fmt: skip
    stage.make("credit-additions", organization_id=organization["id"], credits_added=100)
    budget = stage.make(
        "budgets", organization_id=organization["id"], name="hour", unit="tokens", amount=10_000,
        interval="hour",
    )  # fmt: skip
    monthly = stage.make(
        "budgets", organization_id=organization["id"], name="all", unit="tokens", amount=10_000,
        interval="total",
    )  # fmt: skip
    subject, day = f"tenant:{tenant['id']}", timedelta(days=1, hours=1)
    sent = [
        event(subject, {"service": "chat", "usage": {"input": 30, "output": 12}, "model": "gpt-4o",
                        "user": "ada", "project_id": 7}, day),
        event(f"organization:{organization['id']}", {"service": units["key"], "units": 5}, day),
        event(str(tenant["id"]), {"service": paid["key"], "units": 4}),
        event(tenant["name"], {"service": "chat", "usage": {"input": 5}}),
    ]  # fmt: skip
    assert send(stage, *sent) == {"accepted": 4, "duplicates": 0, "rejected": []}
    found = calls(stage, tenant["id"], 4)
    by_id = {each["event_id"]: each for each in stage.admin("GET", "/events?limit=100")[1]["items"]}
    told = {each["request_id"]: each for each in found}
    chat = told[by_id[sent[0]["id"]]["request_id"]]
    at = datetime.fromisoformat(sent[0]["time"])
    assert abs(datetime.fromisoformat(chat["created_at"]) - at) < timedelta(milliseconds=2)
    assert (chat["tokens"], chat["route"], chat["project_id"], chat["api_key_id"]) == (42, "events", 7, None)
    assert chat["cost"] is not None  # by the price book
    assert stage.quota(tenant["id"])["tokens_used"] == 47
    assert [row["amount"] for row in stage.settled(tenant["id"], 3) if row["request_id"]] == [42, 5]
    _, balance = stage.admin("GET", f"/organizations/{organization['id']}")
    assert balance["credit_balance"] == 88
    wait_until(lambda: unbilled(stage, organization["id"]) == {"usage": "1.25"})
    # The hour has only what was used within it.
    assert stage.admin("GET", f"/budgets/{budget['id']}")[1]["used"] == 5
    assert stage.admin("GET", f"/budgets/{monthly['id']}")[1]["used"] == 47
    # All of it again, and once more with other content.
    other = {**sent[1], "data": {"service": units["key"], "units": 500}}
    assert send(stage, *sent, other) == {"accepted": 0, "duplicates": 5, "rejected": []}
    assert len(calls(stage, tenant["id"], 4)) == 4
    assert stage.quota(tenant["id"])["tokens_used"] == 47
    assert agrees(stage)
