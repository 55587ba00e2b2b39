"""Invoices that are paid: in parts, given back, given up, overdue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from gateway.counters.redis.keys import partition_of
from gateway.errors import Conflict, Unprocessable
from persistence import engine
from persistence.store import Store
from tests.connections import connected
from tests.letterhead import LETTERHEAD
from tests.persistence.april import April, april, at, invoiced
from tests.persistence.credits import give
from tests.persistence.scenario import Account, broken, rows_of

__all__ = ["april"]

DUE_DAYS = 14


async def bought(april: April, unit_cost: str = "0.01", **more: object) -> dict[str, Any]:
    """An invoice of April over credits at 0.01, with 20 % tax: 120.00; of 2 May, due on the 16th."""
    terms: dict[str, object] = {"tax_rate": Decimal("0.20"), "due_days": DUE_DAYS}
    made = await april.do("organizations", "create", name=april.fresh("Acme"), **terms | more)
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    await april.on(at(4, 10))
    give(april.url, april.account, 10_000, unit_cost=unit_cost)
    april.flush()
    await april.on(at(5, 2))
    return await invoiced(april, {"organization": made["id"]}, date(2026, 4, 1), date(2026, 5, 1))


async def pay(
    april: April, invoice: dict[str, Any], amount: str, reference: str = "bank-1"
) -> dict[str, Any]:
    return await april.do("invoices", "payments", invoice["id"], amount=Decimal(amount), reference=reference)


def stands(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["payment_status"], str(row["amount_paid"]), str(row["amount_due"])


async def test_invoice_stays_open_until_the_last_partial_payment(april: April) -> None:
    made = await bought(april)
    assert (stands(made), made["due_date"]) == (("open", "0.00", "120.00"), date(2026, 5, 16))
    assert stands(await pay(april, made, "20.00")) == ("open", "20.00", "100.00")
    assert stands(await pay(april, made, "99.99", "bank-2")) == ("open", "119.99", "0.01")
    assert stands(await pay(april, made, "0.01", "bank-3")) == ("paid", "120.00", "0.00")


async def test_payment_with_a_repeated_reference_is_recorded_once(april: April) -> None:
    made = await bought(april)
    told = await asyncio.gather(*(pay(april, made, "120.00") for _ in range(8)))
    assert {stands(row) for row in told} == {("paid", "120.00", "0.00")}
    with pytest.raises(Conflict, match="'bank-1' stands for USD 120 already"):
        await pay(april, made, "1.00")
    assert len(rows_of(april.url, "SELECT id FROM payment")) == 1


async def test_concurrent_payments_never_exceed_the_amount_due(april: April) -> None:
    made = await bought(april)
    told = await asyncio.gather(
        *(pay(april, made, "50.00", f"bank-{n}") for n in range(6)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in told) == ["Unprocessable"] * 4 + ["dict"] * 2
    row = await april.store.get("invoices", made["id"])
    assert stands(dict(row)) == ("open", "100.00", "20.00")


async def test_payment_is_refused_for_a_draft_invoice_void_invoice_or_draft_credit_note(april: April) -> None:
    made = await bought(april)
    note = await april.do("invoices", "credit-note", made["id"])
    with pytest.raises(Conflict, match="draft credit note cannot be paid"):
        await pay(april, note, "1.00")
    await april.do("invoices", "delete", note["id"])
    await april.do("invoices", "void", made["id"])
    with pytest.raises(Conflict, match="void invoice cannot be paid"):
        await pay(april, made, "1.00")
    draft = await april.do(
        "invoices", "create", organization_id=made["organization_id"], period_start=date(2026, 5, 1),
        period_end=date(2026, 6, 1),
    )  # fmt: skip
    assert (draft["payment_status"], draft["amount_due"]) == (None, None)
    with pytest.raises(Conflict, match="draft invoice cannot be paid"):
        await pay(april, draft, "1.00")


async def test_invoice_is_overdue_from_the_day_after_the_due_date(april: April) -> None:
    made, payments = await bought(april), april.loop("payments", page=1)
    rows_of(
        april.url,
        "INSERT INTO webhook (url, events, secret) VALUES ('https://example.com', '[]', 'x') RETURNING id",
    )
    await april.on(at(5, 16, 23))
    assert await payments.turn() == 0
    await april.on(at(5, 17, 0))
    assert await payments.turn() == 1
    assert await payments.turn() == 0
    assert (await april.store.get("invoices", made["id"]))["payment_status"] == "overdue"
    assert stands(await pay(april, made, "120.00"))[0] == "paid"
    assert [row[0] for row in rows_of(april.url, "SELECT event FROM webhook_delivery ORDER BY id")] == [
        "invoice.overdue", "invoice.paid",
    ]  # fmt: skip


async def test_invoice_totalling_zero_counts_as_paid_at_once(april: April) -> None:
    made = await bought(april, unit_cost="0.0000001")
    assert stands(made) == ("paid", "0.00", "0.00")
    with pytest.raises(Unprocessable):
        await pay(april, made, "0.01")


async def test_payment_term_of_an_organization_overrides_the_payment_term_of_the_seller(april: April) -> None:
    pool = engine.create(april.url)
    april.store = Store(pool, partition_of, lambda: april.now, letterhead=replace(LETTERHEAD, due_days=30))
    assert (await bought(april))["due_date"] == date(2026, 5, 16)
    assert (await bought(april, due_days=None))["due_date"] == date(2026, 6, 1)
    await pool.dispose()


async def test_partly_paid_invoice_may_be_voided_only_after_the_payment_is_reversed(april: April) -> None:
    made = await bought(april)
    await pay(april, made, "20.00")
    with pytest.raises(Conflict, match="20 of this invoice is paid"):
        await april.do("invoices", "void", made["id"])
    [(payment_id,)] = rows_of(april.url, "SELECT id FROM payment")
    back = await april.do("payments", "reverse", int(str(payment_id)), reference="back", amount=Decimal(5))
    assert str(back["amount_left"]) == "15.00"
    with pytest.raises(Unprocessable):
        await april.do(
            "payments", "reverse", int(str(payment_id)), reference="back-2", amount=Decimal("15.01")
        )
    for _ in range(2):
        back = await april.do("payments", "reverse", int(str(payment_id)), reference="back-3")
    assert str(back["amount_left"]) == "0.00"
    made_void = await april.do("invoices", "void", made["id"])
    assert (made_void["status"], made_void["payment_status"]) == ("void", None)


async def test_uncollectible_invoice_still_accepts_payments(april: April) -> None:
    made = await bought(april)
    assert (await april.do("invoices", "uncollectible", made["id"]))["payment_status"] == "uncollectible"
    with pytest.raises(Conflict, match="uncollectible invoice waits for no payment"):
        await april.do("invoices", "uncollectible", made["id"])
    assert stands(await pay(april, made, "20.00")) == ("uncollectible", "20.00", "100.00")
    assert stands(await pay(april, made, "100.00", "bank-2")) == ("paid", "120.00", "0.00")


async def test_database_refuses_changes_of_payments_and_of_final_invoice_amounts(april: April) -> None:
    made = await bought(april)
    await pay(april, made, "20.00")
    with connected(april.url, autocommit=True) as connection:
        for statement in (
            "UPDATE payment SET amount = 1",
            "DELETE FROM payment",
            "TRUNCATE payment",
            "UPDATE invoice SET due_date = due_date + 1",
            "UPDATE invoice SET total_amount = 0, payment_status = 'paid'",
        ):
            with pytest.raises(psycopg.errors.RestrictViolation):
                connection.execute(statement)
        for statement in (
            "UPDATE invoice SET payment_status = NULL",
            "UPDATE invoice SET payment_status = 'settled'",
        ):
            with pytest.raises(psycopg.errors.CheckViolation):
                connection.execute(statement)
        connection.execute("UPDATE invoice SET payment_status = 'paid'")
    assert [violation.invariant for violation in await broken(april.url)] == ["payments"]
    april.is_sound = False
