"""Payments through the API, by every hand that may send one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.admin.conftest import Api
from tests.admin.test_invoices import acme, draft


async def finalized(api: Api, **more: Any) -> dict[str, Any]:
    """An invoice of 69.60, to be paid within 14 days."""
    made = await draft(api, await acme(api, due_days=14, **more))
    done: dict[str, Any] = (await api.post(f"invoices/{made['id']}/finalize")).json
    return done


async def test_finalized_invoice_is_open_with_a_due_date_until_paid(api: Api) -> None:
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


async def test_payment_of_a_draft_or_void_invoice_is_409_and_of_an_unknown_invoice_404(api: Api) -> None:
    made = await draft(api, await acme(api))
    sent = {"amount": "1.00", "reference": "x"}
    assert (await api.post(f"invoices/{made['id']}/payments", sent)).status == 409
    assert (await api.post(f"invoices/{made['id']}/uncollectible")).status == 409
    await api.post(f"invoices/{made['id']}/finalize")
    for wrong in ("69.61", "0", "0.001"):
        more = await api.post(f"invoices/{made['id']}/payments", sent | {"amount": wrong})
        assert (more.status, [each["field"] for each in more.json["errors"]]) == (422, ["amount"])
    await api.post(f"invoices/{made['id']}/void")
    refused = await api.post(f"invoices/{made['id']}/payments", sent)
    assert (refused.status, "void invoice cannot be paid" in refused.json["detail"]) == (409, True)
    assert (await api.post("invoices/999/payments", sent)).status == 404
    assert (await api.post("payments/999/reverse", {"reference": "x"})).status == 404


async def test_reversed_payment_reopens_the_invoice(api: Api) -> None:
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


async def test_credit_note_on_a_paid_invoice_can_be_refunded_or_applied_to_an_invoice(api: Api) -> None:
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


async def test_audit_log_records_the_reason_an_invoice_was_marked_uncollectible(api: Api) -> None:
    made = await finalized(api)
    given_up = await api.post(f"invoices/{made['id']}/uncollectible", {"reason": "insolvent"})
    assert (given_up.status, given_up.json["payment_status"]) == (200, "uncollectible")
    assert given_up.json["uncollectible_at"] is not None
    [kept] = api.rows("select after from audit_log where action = 'uncollectible'")
    assert kept[0] == {"reason": "insolvent"}


# --- credit additions -------------------------------------------------------------------
# Credits given and taken back: one posting each, live in the balance, refused whole or not at all.


SOON = (datetime.now(UTC) + timedelta(days=30)).isoformat()


async def organization(api: Api, name: str = "Acme") -> int:
    return int((await api.make("organizations", name=name))["id"])


async def balance(api: Api, organization_id: int) -> int:
    return int((await api.get(f"organizations/{organization_id}")).json["credit_balance"])


async def test_added_and_corrected_credits_change_the_balance(api: Api) -> None:
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


async def test_credits_added_in_the_name_of_a_user_of_another_organization_are_refused(api: Api) -> None:
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


async def test_added_credits_record_the_user_of_the_calling_token(api: Api) -> None:
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
