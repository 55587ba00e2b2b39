"""Credits with an invoice of their own: billed at once and once, in force at once or with their payment."""

from __future__ import annotations

import asyncio
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from gateway.errors import Conflict, Unprocessable
from persistence.billing.top_ups import due
from tests.persistence.april import April, april, at
from tests.persistence.scenario import Account, broken, rows_of

__all__ = ["april"]


async def customer(april: April, **more: object) -> int:
    terms: dict[str, object] = {"tax_rate": Decimal("0.20")}
    made = await april.do("organizations", "create", name="Acme", **terms | more)
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    await april.on(at(4, 10))
    return int(made["id"])


async def sell(april: April, owner: int, invoicing: str, **more: object) -> dict[str, Any]:
    """10,000 credits at 0.01."""
    sold: dict[str, object] = {"credits_added": 10_000, "unit_cost": Decimal("0.01")}
    return await april.do(
        "credit-additions", "create", organization_id=owner, invoicing=invoicing, **sold | more
    )


async def test_list_of_top_ups_to_invoice_continues_after_the_last_seen_id(april: April) -> None:
    owner = await customer(april)
    first, second = [(await sell(april, owner, "prepaid"))["id"] for _ in range(2)]
    for after, ids in ((0, [first, second]), (first, [second]), (second, [])):
        found = await april.store.run(lambda connection, after=after: due(connection, after, 9))
        assert [each.addition_id for each in found] == ids


def post(april: April) -> int:
    """Let the counters post what waits for them; answers how many credits."""
    waiting = april.rows(
        "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb = 'credits'"
        " RETURNING id::text, (payload->>'amount')::bigint",
    )
    for write_id, amount in waiting:
        april.account.credit(int(str(amount)), str(write_id))
    april.flush()
    return sum(int(str(amount)) for _, amount in waiting)


async def own_invoice(april: April, addition: dict[str, Any]) -> dict[str, Any]:
    row = await april.store.get("credit-additions", addition["id"])
    return dict(await april.store.get("invoices", int(str(row["invoice_id"]))))


async def drafted(april: April, owner: int) -> dict[str, Any]:
    """April's invoice, which nothing is in the way of."""
    return await april.do(
        "invoices",
        "create",
        organization_id=owner,
        period_start=date(2026, 4, 1),
        period_end=date(2026, 5, 1),
    )


async def pay(april: April, invoice: dict[str, Any], amount: str, reference: str) -> dict[str, Any]:
    return await april.do("invoices", "payments", invoice["id"], amount=Decimal(amount), reference=reference)


async def test_top_up_is_invoiced_at_once_and_left_out_of_the_monthly_invoice(april: April) -> None:
    owner, keeper = await customer(april), april.loop("top-ups")
    sold = await sell(april, owner, "now")
    assert sold["in_force"] is True
    assert await keeper.turn() == 0  # the account does not have them yet
    assert post(april) == 10_000
    assert await keeper.turn() == 1
    assert await keeper.turn() == 0
    made = await own_invoice(april, sold)
    assert (made["status"], made["payment_status"], str(made["total_amount"])) == (
        "finalized", "open", "120.00",
    )  # fmt: skip
    assert (made["period_start"], made["period_end"]) == (date(2026, 4, 10), date(2026, 4, 11))
    await april.on(at(5, 2))
    assert (await drafted(april, owner))["lines"] == []


async def test_prepaid_credits_are_granted_once_the_invoice_is_paid_in_full(april: April) -> None:
    owner, keeper = await customer(april), april.loop("top-ups")
    sold = await sell(april, owner, "prepaid")
    assert (sold["in_force"], sold["credits_remaining"]) == (False, 0)
    assert await keeper.turn() == 1
    assert post(april) == 0
    made = await own_invoice(april, sold)
    assert str(made["total_amount"]) == "120.00"
    assert await broken(april.url) == []
    await pay(april, made, "119.99", "bank-1")
    assert post(april) == 0
    await asyncio.gather(*(pay(april, made, "0.01", "bank-2") for _ in range(4)))
    now = await april.store.get("credit-additions", sold["id"])
    assert (now["in_force"], now["credits_remaining"]) == (True, 10_000)
    assert post(april) == 10_000
    assert await keeper.turn() == 0
    await april.on(at(5, 2))
    assert (await drafted(april, owner))["lines"] == []


async def test_prepaid_credits_are_granted_only_once_despite_repeated_payments_and_reversals(
    april: April,
) -> None:
    owner, keeper = await customer(april), april.loop("top-ups")
    sold = await sell(april, owner, "prepaid")
    await keeper.turn()
    made = await own_invoice(april, sold)
    for number in range(3):
        await pay(april, made, "120.00", f"in-{number}")
        [(payment,)] = rows_of(april.url, "SELECT max(id) FROM payment WHERE amount > 0")
        await april.do("payments", "reverse", int(str(payment)), reference=f"back-{number}")
    assert post(april) == 10_000


async def test_prepaid_credits_cancelled_by_a_credit_note_are_neither_owed_nor_granted(april: April) -> None:
    owner, keeper = await customer(april), april.loop("top-ups")
    sold = await sell(april, owner, "prepaid")
    await keeper.turn()
    made = await own_invoice(april, sold)
    with pytest.raises(Conflict, match="Credits wait for this invoice"):
        await april.do("invoices", "void", made["id"])
    note = await april.do("invoices", "credit-note", made["id"])
    await april.do("invoices", "finalize", note["id"])
    assert (await own_invoice(april, sold))["payment_status"] == "paid"
    assert (post(april), await keeper.turn()) == (0, 0)
    assert await april.store.unbilled(owner) == []


async def test_partly_paid_prepaid_credits_are_not_granted_after_a_credit_note(april: April) -> None:
    owner, keeper = await customer(april), april.loop("top-ups")
    sold = await sell(april, owner, "prepaid")
    await keeper.turn()
    made = await own_invoice(april, sold)
    await pay(april, made, "20.00", "bank-1")
    note = await april.do("invoices", "credit-note", made["id"])
    await april.do("invoices", "finalize", note["id"])
    made = await own_invoice(april, sold)
    assert (made["payment_status"], str(made["amount_due"]), post(april)) == ("paid", "0.00", 0)
    # Without the note there is something left to pay, and to wait for.
    await april.do("invoices", "void", note["id"])
    assert post(april) == 0
    await pay(april, made, "100.00", "bank-2")
    assert post(april) == 10_000


async def test_concurrent_keepers_create_only_a_single_invoice_for_each_top_up(april: April) -> None:
    owner = await customer(april)
    for _ in range(3):
        await sell(april, owner, "prepaid")
    await asyncio.gather(*(april.loop("top-ups", page=2).turn() for _ in range(3)))
    assert len(rows_of(april.url, "SELECT id FROM invoice")) == 3


async def test_top_up_invoiced_by_an_operator_is_not_invoiced_again_by_the_keeper(april: April) -> None:
    owner, keeper = await customer(april), april.loop("top-ups")
    sold = await sell(april, owner, "now")
    post(april)
    by_hand = await april.do(
        "invoices", "create", organization_id=owner, source="credit_addition", source_id=sold["id"]
    )
    await april.do("invoices", "finalize", by_hand["id"])
    assert await keeper.turn() == 1
    assert (await own_invoice(april, sold))["id"] == by_hand["id"]
    assert len(rows_of(april.url, "SELECT id FROM invoice")) == 1


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"unit_cost": None}, "unit_cost"),
        ({"unit_cost": Decimal(0)}, "unit_cost"),
        ({"credits_added": 1, "unit_cost": Decimal("0.001")}, "unit_cost"),
        ({"category": "promotional"}, "category"),
        ({"credits_added": -5}, "credits_added"),
        ({"expires_at": at(12, 1)}, "expires_at"),
    ],
)
async def test_prepaid_credits_that_cannot_be_invoiced_are_refused_naming_the_field(
    april: April, sent: dict[str, object], field: str
) -> None:
    owner = await customer(april)
    with pytest.raises(Unprocessable) as refused:
        await sell(april, owner, "prepaid", **sent)
    assert field in dict(refused.value.errors)
    assert rows_of(april.url, "SELECT id FROM credit_addition") == []
