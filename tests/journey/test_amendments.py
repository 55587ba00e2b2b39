"""What a call was charged is taken back, once, with a reason; accounts, journal and charges follow."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

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


def test_no_more_is_taken_back_than_there_is(stack: Stack) -> None:
    organization, _, (chat, sms, image, at_cost) = used(stack)
    assert [e["field"] for e in refused(stack, 422, request_id=chat, tokens=43)["errors"]] == ["tokens"]
    assert [e["field"] for e in refused(stack, 422, request_id=sms, units=6)["errors"]] == ["units"]
    assert [e["field"] for e in refused(stack, 422, request_id=image, credits=13)["errors"]] == ["credits"]
    assert [e["field"] for e in refused(stack, 422, request_id=at_cost, amount="99")["errors"]] == ["amount"]
    assert [e["field"] for e in refused(stack, 422, request_id=sms, tokens=1)["errors"]] == ["tokens"]
    assert [e["field"] for e in refused(stack, 422, request_id=str(uuid4()), tokens=1)["errors"]] == [
        "request_id"
    ]
    other = refused(stack, 422, request_id=chat, tokens=1, organization_id=organization["id"] + 1)
    assert [each["field"] for each in other["errors"]] == ["request_id"]
    refused(stack, 422, request_id="x", tokens=1)
    refused(stack, 422, request_id=chat)
    refused(stack, 422, request_id=chat, tokens=-1)


def test_nothing_is_added_that_a_service_does_not_charge(stack: Stack) -> None:
    _, _, (chat, sms, image, at_cost) = used(stack)
    for request_id, name, value in (
        (sms, "tokens", 1), (chat, "credits", 1), (sms, "credits", 1), (chat, "units", 1),
        (image, "units", 1), (at_cost, "units", 1), (sms, "amount", "1"), (chat, "amount", "1"),
        (at_cost, "amount", "9007200"), (at_cost, "amount", "0.0000000001"), (chat, "tokens", 10**12 + 1),
    ):  # fmt: skip
        answer = refused(stack, 422, request_id=request_id, direction="OUT", **{name: value})
        assert [each["field"] for each in answer["errors"]] == [name], (request_id, name, answer)
    refused(stack, 422, request_id=chat, direction="UP", tokens=1)


def test_an_amendment_charges_a_call_more(stack: Stack) -> None:
    organization, tenant, (chat, sms, image, at_cost) = used(stack)
    before = wait_until(lambda: (o := unbilled(stack, organization["id"])).get("usage") and o)
    made = stack.make("amendments", request_id=chat, direction="OUT", tokens=58, reason="counted too low")
    assert (made["direction"], made["tokens"], made["late_tokens"]) == ("OUT", 58, 0)
    stack.make("amendments", request_id=sms, direction="OUT", units=3, reason="sent in parts")
    stack.make("amendments", request_id=image, direction="OUT", credits=8, reason="larger ones")
    more = stack.make("amendments", request_id=at_cost, direction="OUT", amount="0.5", reason="agreed")
    assert (more["amount"], more["units"]) == ("0.5", 0)
    again = refused(stack, 409, request_id=chat, direction="IN", tokens=1)
    assert again["detail"].startswith("This call was amended")
    # 1,000 - 42 - 58.
    wait_until(lambda: stack.quota(tenant["id"])["tokens_remaining"] == 900)
    row = wait_until(lambda: [r for r in stack.ledger(tenant["id"]) if r["transaction_type"] == "adjust"])[-1]
    assert (row["amount"], row["direction"], row["request_id"]) == (58, "OUT", chat)
    assert row["metadata"] == {"corrects": chat, "reason": "counted too low"}
    # 100 - 12 - 8, as a use that names the call and can be billed.
    wait_until(lambda: stack.admin("GET", f"/organizations/{organization['id']}")[1]["credit_balance"] == 80)
    charged = wait_until(
        lambda: len(rows := stack.admin(
            "GET", f"/credit-transactions?organization_id={organization['id']}"
        )[1]["items"]) == 2 and rows
    )  # fmt: skip
    assert [(each["credits_used"], each["request_id"]) for each in charged] == [(12, image), (8, image)]
    due = float(before["usage"]) + 3 * 0.25 + 0.5
    wait_until(lambda: abs(float(unbilled(stack, organization["id"])["usage"]) - due) < 1e-9)
    told = {each["request_id"]: each for each in calls(stack, tenant["id"], 4)}
    assert (told[chat]["tokens"], told[sms]["units"], told[image]["credits"]) == (100, 8, 20)
    # What was used is in the budget as it was.
    [budget] = stack.admin("GET", f"/budgets?organization_id={organization['id']}")[1]["items"]
    assert budget["used"] == 42 + 1_000_000
    assert agrees(stack)


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
