"""What a call was charged is taken back, once, with a reason; accounts, journal and charges follow."""

from __future__ import annotations

import time
from typing import Any

from tests.journey.stack import Body
from tests.journey.test_events import agrees, calls, event, send, unbilled
from tests.stage import Stage
from tests.waiting import wait_until


def refused(stage: Stage, status: int, **asked: Any) -> Body:
    found, answer = stage.admin("POST", "/amendments", {"reason": "a test", **asked})
    assert found == status, answer
    problem: Body = answer
    return problem


def used(stage: Stage) -> tuple[Body, Body, list[str]]:
    """An organization, its tenant, and a call of each business model: tokens, units, credits, at cost."""
    organization = stage.make("organizations", name=f"amend {time.monotonic_ns()}")
    plan = stage.make("token-plans", name=f"amend {time.monotonic_ns()}", total_amount=1000)
    tenant = stage.make(
        "tenants", name=f"amend {time.monotonic_ns()}", organization_id=organization["id"], plan_id=plan["id"]
    )
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
    cost = stage.make(
        "services", name="At cost", key=f"cost-{time.monotonic_ns()}", credits=0,
        service_type="Pay-As-You-Go", business_model_id=ids["Pay-Per-Use"],
        pricing={"at_cost": {"markup": "1"}},
    )  # fmt: skip
    stage.make("credit-additions", organization_id=organization["id"], credits_added=100)
    stage.make(
        "budgets", organization_id=organization["id"], name="all", unit="tokens", amount=10_000,
        interval="total",
    )  # fmt: skip
    # What is used before the plan is in force belongs to no cycle of it.
    wait_until(lambda: stage.quota(tenant["id"])["tokens_remaining"] == 1000)
    subject = f"tenant:{tenant['id']}"
    sent = [
        event(subject, {"service": "chat", "usage": {"input": 30, "output": 12}}),
        event(subject, {"service": units["key"], "units": 5}),
        event(subject, {"service": paid["key"], "units": 4}),
        event(subject, {"service": cost["key"], "model": "gpt-4o", "usage": {"input": 1_000_000}}),
    ]
    assert send(stage, *sent)["accepted"] == 4
    calls(stage, tenant["id"], 4)
    known = {
        each["event_id"]: each["request_id"] for each in stage.admin("GET", "/events?limit=1000")[1]["items"]
    }
    return organization, tenant, [known[one["id"]] for one in sent]


def test_no_more_is_taken_back_than_there_is_and_nothing_added_that_is_not_charged(stage: Stage) -> None:
    _, _, (chat, sms, image, at_cost) = used(stage)
    for request_id, direction, field, value in (
        (chat, "IN", "tokens", 43), (sms, "IN", "units", 6), (image, "IN", "credits", 13),
        (at_cost, "IN", "amount", "99"), (sms, "IN", "tokens", 1), (chat, "OUT", "credits", 1),
        (image, "OUT", "units", 1), (sms, "OUT", "amount", "1"), (at_cost, "OUT", "amount", "0.0000000001"),
    ):  # fmt: skip
        answer = refused(stage, 422, request_id=request_id, direction=direction, **{field: value})
        assert [each["field"] for each in answer["errors"]] == [field], (request_id, field, answer)


def test_an_amendment_takes_back_what_a_call_was_charged(stage: Stage) -> None:
    organization, tenant, (chat, sms, image, at_cost) = used(stage)
    before = wait_until(lambda: (o := unbilled(stage, organization["id"])).get("usage") and o)
    made = stage.make("amendments", request_id=chat, tokens=15, reason="counted twice")
    assert (made["tokens"], made["late_tokens"], made["reason"]) == (15, 0, "counted twice")
    assert made["actor"] == "builtin:admin"
    stage.make("amendments", request_id=sms, units=2, reason="not sent")
    stage.make("amendments", request_id=image, credits=12, reason="blurred")
    back = stage.make("amendments", request_id=at_cost, amount="0.5", reason="agreed")
    assert (back["amount"], back["units"]) == ("0.5", 0)
    assert refused(stage, 409, request_id=chat, tokens=1)["detail"].startswith("This call was amended")
    quota = wait_until(lambda: (q := stage.quota(tenant["id"]))["tokens_remaining"] == 973 and q)
    assert quota["tokens_used"] == 27
    row = wait_until(lambda: [r for r in stage.ledger(tenant["id"]) if r["transaction_type"] == "adjust"])[-1]
    assert (row["amount"], row["direction"], row["request_id"]) == (15, "IN", chat)
    assert row["metadata"] == {"corrects": chat, "reason": "counted twice"}
    wait_until(lambda: stage.admin("GET", f"/organizations/{organization['id']}")[1]["credit_balance"] == 100)
    due = float(before["usage"]) - 0.5 - 0.5
    wait_until(lambda: abs(float(unbilled(stage, organization["id"])["usage"]) - due) < 1e-9)
    told = {each["request_id"]: each for each in calls(stage, tenant["id"], 4)}
    assert (told[chat]["tokens"], told[sms]["units"], told[image]["credits"]) == (27, 3, 0)
    assert agrees(stage)
