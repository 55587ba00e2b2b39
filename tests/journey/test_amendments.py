"""What a call was charged is taken back, once, with a reason; accounts, journal and charges follow."""

from __future__ import annotations

import time
from typing import Any

from tests.journey.stack import Body, Stack
from tests.journey.test_events import agrees, calls, event, send, unbilled
from tests.waiting import wait_until


def refused(stack: Stack, status: int, **asked: Any) -> Body:
    found, answer = stack.admin("POST", "/amendments", {"reason": "a test", **asked})
    assert found == status, answer
    problem: Body = answer
    return problem


def used(stack: Stack) -> tuple[Body, Body, list[str]]:
    """An organization, its tenant, and a call of each business model: tokens, units, credits, at cost."""
    organization = stack.make("organizations", name=f"amend {time.monotonic_ns()}")
    plan = stack.make("token-plans", name=f"amend {time.monotonic_ns()}", total_amount=1000)
    tenant = stack.make(
        "tenants", name=f"amend {time.monotonic_ns()}", organization_id=organization["id"], plan_id=plan["id"]
    )
    model = stack.admin("GET", "/business-models?limit=100")[1]["items"]
    ids = {each["name"]: each["id"] for each in model}
    units = stack.make(
        "services", name="Sms", key=f"sms-{time.monotonic_ns()}", credits=0, service_type="Pay-As-You-Go",
        business_model_id=ids["Pay-Per-Use"], pricing={"tiers": [{"up_to": None, "unit_price": "0.25"}]},
    )  # fmt: skip
    paid = stack.make(
        "services", name="Pictures", key=f"img-{time.monotonic_ns()}", credits=3,
        service_type="Pay-As-You-Go", business_model_id=ids["Consumption"],
    )  # fmt: skip
    cost = stack.make(
        "services", name="At cost", key=f"cost-{time.monotonic_ns()}", credits=0,
        service_type="Pay-As-You-Go", business_model_id=ids["Pay-Per-Use"],
        pricing={"at_cost": {"markup": "1"}},
    )  # fmt: skip
    stack.make("credit-additions", organization_id=organization["id"], credits_added=100)
    stack.make(
        "budgets", organization_id=organization["id"], name="all", unit="tokens", amount=10_000,
        interval="total",
    )  # fmt: skip
    # What is used before the plan is in force belongs to no cycle of it.
    wait_until(lambda: stack.quota(tenant["id"])["tokens_remaining"] == 1000)
    subject = f"tenant:{tenant['id']}"
    sent = [
        event(subject, {"service": "chat", "usage": {"input": 30, "output": 12}}),
        event(subject, {"service": units["key"], "units": 5}),
        event(subject, {"service": paid["key"], "units": 4}),
        event(subject, {"service": cost["key"], "model": "gpt-4o", "usage": {"input": 1_000_000}}),
    ]
    assert send(stack, *sent)["accepted"] == 4
    calls(stack, tenant["id"], 4)
    known = {
        each["event_id"]: each["request_id"] for each in stack.admin("GET", "/events?limit=1000")[1]["items"]
    }
    return organization, tenant, [known[one["id"]] for one in sent]


def test_no_more_is_taken_back_than_there_is_and_nothing_added_that_is_not_charged(stack: Stack) -> None:
    _, _, (chat, sms, image, at_cost) = used(stack)
    for request_id, direction, field, value in (
        (chat, "IN", "tokens", 43), (sms, "IN", "units", 6), (image, "IN", "credits", 13),
        (at_cost, "IN", "amount", "99"), (sms, "IN", "tokens", 1), (chat, "OUT", "credits", 1),
        (image, "OUT", "units", 1), (sms, "OUT", "amount", "1"), (at_cost, "OUT", "amount", "0.0000000001"),
    ):  # fmt: skip
        answer = refused(stack, 422, request_id=request_id, direction=direction, **{field: value})
        assert [each["field"] for each in answer["errors"]] == [field], (request_id, field, answer)


def test_an_amendment_takes_back_what_a_call_was_charged(stack: Stack) -> None:
    organization, tenant, (chat, sms, image, at_cost) = used(stack)
    before = wait_until(lambda: (o := unbilled(stack, organization["id"])).get("usage") and o)
    made = stack.make("amendments", request_id=chat, tokens=15, reason="counted twice")
    assert (made["tokens"], made["late_tokens"], made["reason"]) == (15, 0, "counted twice")
    assert made["actor"] == "builtin:admin"
    stack.make("amendments", request_id=sms, units=2, reason="not sent")
    stack.make("amendments", request_id=image, credits=12, reason="blurred")
    back = stack.make("amendments", request_id=at_cost, amount="0.5", reason="agreed")
    assert (back["amount"], back["units"]) == ("0.5", 0)
    assert refused(stack, 409, request_id=chat, tokens=1)["detail"].startswith("This call was amended")
    quota = wait_until(lambda: (q := stack.quota(tenant["id"]))["tokens_remaining"] == 973 and q)
    assert quota["tokens_used"] == 27
    row = wait_until(lambda: [r for r in stack.ledger(tenant["id"]) if r["transaction_type"] == "adjust"])[-1]
    assert (row["amount"], row["direction"], row["request_id"]) == (15, "IN", chat)
    assert row["metadata"] == {"corrects": chat, "reason": "counted twice"}
    wait_until(lambda: stack.admin("GET", f"/organizations/{organization['id']}")[1]["credit_balance"] == 100)
    due = float(before["usage"]) - 0.5 - 0.5
    wait_until(lambda: abs(float(unbilled(stack, organization["id"])["usage"]) - due) < 1e-9)
    told = {each["request_id"]: each for each in calls(stack, tenant["id"], 4)}
    assert (told[chat]["tokens"], told[sms]["units"], told[image]["credits"]) == (27, 3, 0)
    assert agrees(stack)
