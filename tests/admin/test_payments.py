"""Payments through the API, by every hand that may send one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.core.model import INTEGER_MAX
from tests.admin.conftest import READONLY, Api
from tests.admin.test_invoices import acme, draft
from tests.in_turn import in_turn


async def finalized(api: Api, **more: Any) -> dict[str, Any]:
    """An invoice of 69.60, to be paid within 14 days."""
    made = await draft(api, await acme(api, due_days=14, **more))
    done: dict[str, Any] = (await api.post(f"invoices/{made['id']}/finalize")).json
    return done


async def test_a_finalized_invoice_is_open_and_has_a_day(api: Api) -> None:
    made = await finalized(api)
    assert (made["payment_status"], made["amount_paid"], made["amount_due"]) == ("open", "0.00", "69.60")
    assert made["due_date"] > made["finalized_at"][:10]
    paid = await api.post(f"invoices/{made['id']}/payments", {"amount": "69.60", "reference": "bank-7"})
    assert (paid.status, paid.json["payment_status"], paid.json["amount_due"]) == (200, "paid", "0.00")
    assert paid.json["number"] == made["number"]
    for status, count in (("paid", 1), ("open", 0)):
        assert len((await api.get(f"invoices?payment_status={status}")).json["items"]) == count
    [payment] = (await api.get(f"payments?invoice_id={made['id']}&reference=bank-7")).json["items"]
    assert (payment["amount"], payment["amount_left"], payment["currency"]) == ("69.60", "69.60", "USD")
    assert (await api.get(f"payments/{payment['id']}")).json == payment


async def test_a_payment_told_again_changes_nothing(api: Api) -> None:
    made = await finalized(api)
    where, sent = f"invoices/{made['id']}/payments", {"amount": "20.00", "reference": "bank-7"}
    first, again = await api.post(where, sent, key="one"), await api.post(where, sent, key="one")
    assert (again.json, again.headers["Idempotent-Replayed"]) == (first.json, "true")
    assert (await api.post(where, sent)).json == first.json
    other = await api.post(where, sent | {"amount": "20.01"})
    assert (other.status, "'bank-7' stands for USD 20" in other.json["detail"]) == (409, True)
    assert len((await api.get("payments")).json["items"]) == 1


@pytest.fixture
async def final(api: Api) -> dict[str, Any]:
    return await finalized(api)


@in_turn(
    ("sent", "field"),
    [
        ({"amount": "69.61", "reference": "x"}, "amount"),
        ({"amount": "0", "reference": "x"}, "amount"),
        ({"amount": "0.001", "reference": "x"}, "amount"),
        ({"amount": "-1", "reference": "x"}, "amount"),
        ({"amount": "NaN", "reference": "x"}, "amount"),
        ({"amount": "Infinity", "reference": "x"}, "amount"),
        ({"amount": "1e30", "reference": "x"}, "amount"),
        ({"amount": "1" + "0" * 30, "reference": "x"}, "amount"),
        ({"amount": 1, "reference": "x"}, "amount"),
        ({"amount": None, "reference": "x"}, "amount"),
        ({"reference": "x"}, "amount"),
        ({"amount": "1"}, "reference"),
        ({"amount": "1", "reference": ""}, "reference"),
        ({"amount": "1", "reference": " "}, "reference"),
        ({"amount": "1", "reference": "a\nb"}, "reference"),
        ({"amount": "1", "reference": "x" * 201}, "reference"),
        ({"amount": "1", "reference": "x", "currency": "JPY"}, "currency"),
    ],
)
async def test_what_is_no_payment_is_refused_by_its_field(
    api: Api, final: dict[str, Any], sent: Any, field: str
) -> None:
    refused = await api.post(f"invoices/{final['id']}/payments", sent)
    assert (refused.status, [each["field"] for each in refused.json["errors"]]) == (422, [field])
    assert (await api.get("payments")).json["items"] == []


async def test_what_is_not_to_be_paid_is_409_and_unknown_404(api: Api) -> None:
    made = await draft(api, await acme(api))
    sent = {"amount": "1.00", "reference": "x"}
    assert (await api.post(f"invoices/{made['id']}/payments", sent)).status == 409
    assert (await api.post(f"invoices/{made['id']}/uncollectible")).status == 409
    await api.post(f"invoices/{made['id']}/finalize")
    await api.post(f"invoices/{made['id']}/void")
    refused = await api.post(f"invoices/{made['id']}/payments", sent)
    assert (refused.status, "void invoice cannot be paid" in refused.json["detail"]) == (409, True)
    assert (await api.post("invoices/999/payments", sent)).status == 404
    assert (await api.post("payments/999/reverse", {"reference": "x"})).status == 404


async def test_readers_pay_nothing(api: Api) -> None:
    made = await finalized(api)
    reader, sent = api.acting_as(READONLY), {"amount": "1.00", "reference": "x"}
    assert (await reader.post(f"invoices/{made['id']}/payments", sent)).status == 403
    assert (await reader.post(f"invoices/{made['id']}/uncollectible")).status == 403
    assert (await reader.get("payments")).status == 200
    assert (await api.post("payments", sent)).status == 405


async def test_a_payment_goes_back(api: Api) -> None:
    made = await finalized(api)
    await api.post(f"invoices/{made['id']}/payments", {"amount": "69.60", "reference": "bank-7"})
    [payment] = (await api.get("payments")).json["items"]
    where = f"payments/{payment['id']}/reverse"
    assert (await api.post(where, {"reference": "bank-7"})).status == 409
    back = await api.post(where, {"reference": "bank-8", "amount": "9.60"})
    assert (back.status, back.json["amount_left"]) == (200, "60.00")
    now = (await api.get(f"invoices/{made['id']}")).json
    assert (now["payment_status"], now["amount_due"]) == ("open", "9.60")
    [returned] = (await api.get(f"payments?corrects_id={payment['id']}")).json["items"]
    assert (returned["amount"], returned["amount_left"]) == ("-9.60", "0.00")
    assert (await api.post(f"payments/{returned['id']}/reverse", {"reference": "y"})).status == 409


async def test_what_a_note_gives_back_of_a_paid_invoice_is_applied_or_paid_back(api: Api) -> None:
    made = await finalized(api)
    await api.post(f"invoices/{made['id']}/payments", {"amount": "69.60", "reference": "bank-7"})
    note = (await api.post(f"invoices/{made['id']}/credit-note")).json
    one = f"invoices/{note['id']}"
    told = (await api.post(f"{one}/finalize")).json
    names = ("payment_status", "amount_paid", "amount_applied", "amount_due")
    assert [told[name] for name in names] == [None, "0.00", "0.00", "-69.60"]
    sent = {"amount": "60.00", "reference": "out-1"}
    first, again = (
        await api.post(f"{one}/refund", sent, key="one"),
        await api.post(f"{one}/refund", sent, key="one"),
    )
    assert (again.json, again.headers["Idempotent-Replayed"]) == (first.json, "true")
    assert [first.json[name] for name in names] == [None, "-60.00", "0.00", "-9.60"]
    refused = await api.post(f"{one}/apply", {"invoice_id": made["id"], "amount": "1.00"})
    assert (refused.status, refused.json["errors"]) == (
        422, [{"field": "amount", "message": "USD 0.00 is left to pay, not 1.00"}],
    )  # fmt: skip
    [payment] = (await api.get(f"payments?invoice_id={made['id']}")).json["items"]
    await api.post(f"payments/{payment['id']}/reverse", {"reference": "bank-8", "amount": "10.00"})
    # What came back of the invoice's own money is what its note gave back.
    assert (await api.get(f"invoices/{made['id']}")).json["amount_due"] == "0.40"
    [applied] = (await api.get(f"note-applications?note_id={note['id']}")).json["items"]
    assert [applied[name] for name in ("invoice_id", "amount", "reason", "actor")] == [
        made["id"], "9.60", "own", "builtin:admin",
    ]  # fmt: skip
    for where in (f"invoices/{made['id']}/apply", f"invoices/{made['id']}/refund"):
        body = {"invoice_id": made["id"], "amount": "1.00"} if where.endswith("apply") else sent
        assert (await api.post(where, body)).status == 409


async def test_what_is_given_up_says_why_in_the_audit_log(api: Api) -> None:
    made = await finalized(api)
    given_up = await api.post(f"invoices/{made['id']}/uncollectible", {"reason": "insolvent"})
    assert (given_up.status, given_up.json["payment_status"]) == (200, "uncollectible")
    assert given_up.json["uncollectible_at"] is not None
    [kept] = api.rows("select after from audit_log where action = 'uncollectible'")
    assert kept[0] == {"reason": "insolvent"}


@in_turn("days", [-1, 366, "14", 1.5])
async def test_days_to_pay_are_a_number(api: Api, days: Any) -> None:
    refused = await api.post("organizations", {"name": "Acme", "due_days": days})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "due_days")


# --- credit additions -------------------------------------------------------------------
# Credits given and taken back: one posting each, live in the balance, refused whole or not at all.


SOON = (datetime.now(UTC) + timedelta(days=30)).isoformat()
PAST = (datetime.now(UTC) - timedelta(days=30)).isoformat()


async def organization(api: Api, name: str = "Acme") -> int:
    return int((await api.make("organizations", name=name))["id"])


async def balance(api: Api, organization_id: int) -> int:
    return int((await api.get(f"organizations/{organization_id}")).json["credit_balance"])


async def test_credits_are_given_and_taken_back(api: Api) -> None:
    owner = await organization(api)
    paid = await api.make("credit-additions", organization_id=owner, credits_added=8_000, unit_cost="0.01")
    assert (paid["category"], paid["priority"], paid["unit_cost"]) == ("paid", 100, "0.01")
    gift = await api.make(
        "credit-additions", organization_id=owner, credits_added=2_000, category="promotional",
        expires_at=SOON, remark="Welcome", priority=5,
    )  # fmt: skip
    assert (gift["category"], gift["priority"], gift["remark"]) == ("promotional", 5, "Welcome")
    back = await api.make("credit-additions", organization_id=owner, credits_added=-500)
    assert back["category"] == "correction"
    assert await balance(api, owner) == 9_500
    assert [row["credits_added"] for row in (await api.get("credit-additions")).json["items"]] == [
        8_000, 2_000, -500
    ]  # fmt: skip
    promotional = await api.get(f"credit-additions?organization_id={owner}&category=promotional")
    assert [row["id"] for row in promotional.json["items"]] == [gift["id"]]
    assert api.rows(
        "select count(*) from credit_addition as a join control_write as w on w.id = a.control_write_id"
        " where w.verb = 'credits' and (w.payload->>'amount')::bigint = a.credits_added"
    ) == [(3,)]


async def test_users_are_named_for_their_own_organization_alone(api: Api) -> None:
    owner, other = await organization(api), await organization(api, "Globex")
    ann = (await api.make("users", external_id="ann", organization_id=owner))["id"]
    staff = (await api.make("users", external_id="ada"))["id"]
    for giver in (ann, staff):
        sent = {"organization_id": owner, "credits_added": 1, "added_by_id": giver}
        assert (await api.post("credit-additions", sent)).json["added_by_id"] == giver
    wrong = await api.post(
        "credit-additions", {"organization_id": other, "credits_added": 1, "added_by_id": ann}
    )
    assert (wrong.status, wrong.json["errors"][0]["field"]) == (422, "added_by_id")
    assert await balance(api, other) == 0


async def test_who_added_them_is_the_caller(api: Api) -> None:
    owner = await organization(api)
    staff = await api.make("users", external_id="ada")
    token = await api.make("admin-tokens", name="ada", role="admin", user_id=staff["id"])
    ada = api.acting_as(token["token"])
    assert (await ada.make("credit-additions", organization_id=owner, credits_added=1))[
        "added_by_id"
    ] == staff["id"]
    by_settings = await api.make("credit-additions", organization_id=owner, credits_added=1)
    built_in = (await api.get(f"users/{by_settings['added_by_id']}")).json
    assert (built_in["external_id"], built_in["organization_id"]) == ("built-in", None)
    nobodys = await api.make("admin-tokens", name="robot", role="admin")
    by_robot = await api.acting_as(nobodys["token"]).make(
        "credit-additions", organization_id=owner, credits_added=1
    )
    assert by_robot["added_by_id"] is None


async def test_the_same_key_gives_credits_once(api: Api) -> None:
    owner = await organization(api)
    sent = {"organization_id": owner, "credits_added": 100}
    first = await api.post("credit-additions", sent, key="one")
    again = await api.post("credit-additions", sent, key="one")
    assert (again.status, again.json) == (201, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert await balance(api, owner) == 100


async def test_credits_wait_while_the_counters_are_away(api: Api) -> None:
    owner = await organization(api)
    api.counters.away = True
    assert (
        await api.post("credit-additions", {"organization_id": owner, "credits_added": 100})
    ).status == 202
    assert await balance(api, owner) == 0
    api.counters.away = False
    await api.counters.push([f"organization:{owner}"])
    assert await balance(api, owner) == 100


async def test_what_the_counters_refuse_was_never_added(api: Api) -> None:
    owner = await organization(api)
    api.counters.refuses = "out of range"
    refused = await api.post("credit-additions", {"organization_id": owner, "credits_added": INTEGER_MAX})
    assert refused.status == 409
    assert (await api.get("credit-additions")).json["items"] == []


@pytest.fixture
async def buyer(api: Api) -> int:
    return await organization(api)


@in_turn(
    ("fields", "named"),
    [
        ({"credits_added": 0}, "credits_added"),
        ({"credits_added": INTEGER_MAX + 1}, "credits_added"),
        ({"credits_added": -INTEGER_MAX - 1}, "credits_added"),
        ({"credits_added": "5"}, "credits_added"),
        ({"credits_added": 1.5}, "credits_added"),
        ({"organization_id": 999}, "organization_id"),
        ({"added_by_id": 999}, "added_by_id"),
        ({"category": "gift"}, "category"),
        ({"expires_at": PAST}, "expires_at"),
        ({"credits_added": -1, "expires_at": SOON}, "expires_at"),
        ({"timestamp": SOON}, "timestamp"),
        ({"unit_cost": "-1"}, "unit_cost"),
        ({"unit_cost": 0.01}, "unit_cost"),
        ({"balance_after": 1}, "balance_after"),
    ],
)
async def test_wrong_fields(api: Api, buyer: int, fields: dict[str, Any], named: str) -> None:
    sent = {"organization_id": buyer, "credits_added": 5} | fields
    refused = await api.post("credit-additions", sent)
    assert refused.status == 422, refused.raw
    assert [error["field"] for error in refused.json["errors"]] == [named]
    assert api.rows("select count(*) from credit_addition") == [(0,)]


async def test_additions_are_never_changed(api: Api) -> None:
    made = await api.make("credit-additions", organization_id=await organization(api), credits_added=5)
    assert (await api.patch(f"credit-additions/{made['id']}", {"remark": "x"})).status == 405
    assert (await api.delete(f"credit-additions/{made['id']}")).status == 405


async def test_prepaid_credits_wait_for_their_invoice(api: Api) -> None:
    owner = await organization(api)
    sold = await api.make(
        "credit-additions", organization_id=owner, credits_added=1_000, unit_cost="0.01", invoicing="prepaid"
    )
    assert (sold["in_force"], sold["invoice_id"], sold["credits_remaining"]) == (False, None, 0)
    assert await balance(api, owner) == 0
    for wrong in ({"invoicing": "later"}, {"invoicing": "now", "unit_cost": None}):
        sent = {"organization_id": owner, "credits_added": 1_000, "unit_cost": "0.01"} | wrong
        refused = await api.post("credit-additions", sent)
        assert refused.status == 422
        assert refused.json["errors"][0]["field"] == ("unit_cost" if "unit_cost" in wrong else "invoicing")
