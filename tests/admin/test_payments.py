"""Payments through the API, by every hand that may send one."""

from __future__ import annotations

from typing import Any

import pytest

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
