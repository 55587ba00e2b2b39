"""Credit of notes: applied to what is due, the oldest first, or paid back; who owes nothing is let alone."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from gateway.errors import Conflict, Unprocessable
from persistence.dunning import DunningSchedule
from tests.connections import connected
from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import act, customer
from tests.persistence.scenario import broken

__all__ = ["april"]

SCHEDULE = DunningSchedule.read("3,7", 10)
ROWS = "SELECT note_id, invoice_id, trim_scale(amount)::text, reason, actor FROM note_application ORDER BY id"
PERSON = "builtin:admin"


async def bill(april: April, ids: dict[str, int], *, month: int | None = None) -> dict[str, Any]:
    """A final document: of the fees in advance, or of a month of 2026."""
    of: dict[str, object] = {"source": "subscription_segment"}
    if month is not None:
        of = {"period_start": date(2026, month, 1), "period_end": date(2026, month + 1, 1)}
    made = await april.do("invoices", "create", organization_id=ids["organization"], **of)
    return await april.do("invoices", "finalize", made["id"])


async def pay(april: April, made: dict[str, Any], amount: str, reference: str = "bank-1") -> dict[str, Any]:
    return await april.do("invoices", "payments", made["id"], amount=Decimal(amount), reference=reference)


async def stands(april: April, made: dict[str, Any]) -> tuple[str | None, str, str, str]:
    row = await april.store.get("invoices", made["id"])
    return (
        row["payment_status"], str(row["amount_paid"]), str(row["amount_applied"]), str(row["amount_due"]),
    )  # type: ignore[return-value]  # as the contract has it  # fmt: skip


async def downgraded(april: April, *, paid: bool = False) -> tuple[dict[str, int], dict[str, Any], Any]:
    """1200.00 for a year from 1 June in advance, due on the 6th; on the 3rd down to 120.00 a year.

    By hand: 120 * 363/365 - 1200 * 363/365 = -1074.08.
    """
    small, large = await plan(april, "Small", "12.00", 1), await plan(april, "Large", "120.00", 1)
    await april.on(at(6, 1))
    ids = await customer(april, large, date(2026, 6, 1), None, billing="advance", billing_interval="annual")
    await april.do("organizations", "change", ids["organization"], due_days=5)
    first = await bill(april, ids)
    if paid:
        await pay(april, first, "1200.00")
    await april.on(at(6, 3))
    await act(april, ids, "change", plan_id=small, when="now")
    return ids, first, await bill(april, ids)


async def test_credit_note_of_a_downgrade_reduces_the_open_invoice_and_prevents_dunning(april: April) -> None:
    """Who owes 125.92, and pays it, is never blocked."""
    _, first, note = await downgraded(april)
    assert (str(first["amount_due"]), note["kind"], str(note["total_amount"])) == (
        "1200.00", "credit_note", "-1074.08",
    )  # fmt: skip
    assert await stands(april, first) == ("open", "0.00", "1074.08", "125.92")
    assert await stands(april, note) == (None, "0.00", "-1074.08", "0.00")
    assert april.rows(ROWS) == [(note["id"], first["id"], "1074.08", "oldest", PERSON)]
    await april.on(at(6, 5))
    await pay(april, first, "125.92")
    for day in (6, 10, 14, 22, 29):
        await april.on(at(6, day))
        await april.dun(SCHEDULE)
    assert april.rows("SELECT action FROM dunning_step") == []
    assert (await stands(april, first))[0] == "paid"


async def test_credit_notes_name_only_the_invoice_that_billed_the_refunded_fee(april: April) -> None:
    ids, first, note = await downgraded(april)
    least = await plan(april, "Least", "6.00", 1)
    await april.on(at(6, 4))
    await act(april, ids, "change", plan_id=least, when="now")
    for each in (note, await bill(april, ids)):
        corrected = [one["number"] for one in each["corrects"]]
        assert (each["kind"], corrected) == ("credit_note", [first["number"]])


async def test_credit_note_on_a_paid_invoice_pays_the_next_invoice_and_the_rest_is_refunded(
    april: April,
) -> None:
    _, first, note = await downgraded(april, paid=True)
    assert await stands(april, note) == (None, "0.00", "0.00", "-1074.08")
    assert await stands(april, first) == ("paid", "1200.00", "0.00", "0.00")
    with pytest.raises(Conflict, match="credit note cannot be paid"):
        await pay(april, note, "1074.08")
    # A top-up of 74.08 is paid by it, as it becomes final; its own documents say so.
    sold = await april.do(
        "credit-additions", "create", organization_id=first["organization_id"], credits_added=7_408,
        unit_cost=Decimal("0.01"), invoicing="prepaid",
    )  # fmt: skip
    of = {"organization_id": first["organization_id"], "source": "credit_addition", "source_id": sold["id"]}
    top_up = await april.do("invoices", "top-up", **of)
    assert await stands(april, top_up) == ("paid", "0.00", "74.08", "0.00")
    assert str(top_up["amount_prepaid"]) == "74.08"
    assert april.rows("SELECT payload FROM control_write WHERE verb = 'credits'") == [({"amount": 7408},)]
    with pytest.raises(Unprocessable) as refused:
        await april.do("invoices", "refund", note["id"], amount=Decimal("1000.01"), reference="out-1")
    assert refused.value.errors == (("amount", "USD 1000.00 is left of the credit note, not 1000.01"),)
    for _ in range(2):
        await april.do("invoices", "refund", note["id"], amount=Decimal("999.99"), reference="out-1")
    with pytest.raises(Conflict, match=r"'out-1' stands for USD -999\.99 already"):
        await april.do("invoices", "refund", note["id"], amount=Decimal("0.01"), reference="out-1")
    assert await stands(april, note) == (None, "-999.99", "-74.08", "-0.01")
    assert await broken(april.url) == []
    # A refund that came back is credit again; while it is out, the note stays.
    with pytest.raises(Conflict, match=r"999\.99 of this note is paid back"):
        await april.do("invoices", "void", note["id"])
    [(refund,)] = april.rows("SELECT id FROM payment WHERE amount < 0")
    back = await april.do("payments", "reverse", int(str(refund)), reference="back-1")
    assert str(back["amount_left"]) == "0.00"
    assert await stands(april, note) == (None, "0.00", "-74.08", "-1000.00")
    await april.do("invoices", "void", note["id"])
    assert await stands(april, top_up) == ("open", "0.00", "0.00", "74.08")


async def test_operator_applies_part_of_a_credit_note_and_the_keeper_the_rest_on_the_due_date(
    april: April,
) -> None:
    _, first, note = await downgraded(april, paid=True)
    [(payment,)] = april.rows("SELECT id FROM payment")
    await april.do("payments", "reverse", int(str(payment)), reference="bounced", amount=Decimal("600.00"))
    assert await stands(april, first) == ("open", "600.00", "0.00", "600.00")

    async def apply(invoice_id: int, amount: str, of: int = note["id"]) -> dict[str, Any]:
        return await april.do("invoices", "apply", of, invoice_id=invoice_id, amount=Decimal(amount))

    made = await apply(first["id"], "100.00")
    assert (made["id"], str(made["amount_due"])) == (note["id"], "-974.08")
    assert await stands(april, first) == ("open", "600.00", "100.00", "500.00")
    for invoice_id, amount, of, refused in (
        (first["id"], "500.01", note["id"], Unprocessable),
        (first["id"], "0.00", note["id"], Unprocessable),
        (first["id"], "0.001", note["id"], Unprocessable),
        (note["id"], "1.00", note["id"], Unprocessable),
        (first["id"] + 999, "1.00", note["id"], Unprocessable),
        (first["id"], "1.00", first["id"], Conflict),
    ):
        with pytest.raises(refused):
            await apply(invoice_id, amount, of)
    # The day it was due by is over, so the rest is applied by itself: nothing is overdue meanwhile.
    await april.on(at(6, 7))
    await april.dun(SCHEDULE)
    assert await stands(april, first) == ("paid", "600.00", "600.00", "0.00")
    assert await stands(april, note) == (None, "0.00", "-600.00", "-474.08")
    assert [(row[2], row[3], row[4]) for row in april.rows(ROWS)] == [
        ("100", "asked", PERSON), ("500", "oldest", "keeper"),
    ]  # fmt: skip


async def test_open_credit_covers_a_reversed_payment_so_the_invoice_is_not_overdue(april: April) -> None:
    _, first, note = await downgraded(april, paid=True)
    april.rows("INSERT INTO webhook (url, events, secret) VALUES ('https://x', '[]', 'x') RETURNING id")
    await april.on(at(6, 25))
    [(payment,)] = april.rows("SELECT id FROM payment")
    await april.do("payments", "reverse", int(str(payment)), reference="bounced", amount=Decimal("1000.00"))
    assert await stands(april, first) == ("paid", "200.00", "1000.00", "0.00")
    assert await stands(april, note) == (None, "0.00", "-1000.00", "-74.08")
    await april.dun(SCHEDULE)
    assert april.rows("SELECT event FROM webhook_delivery WHERE event ~ 'overdue|remind|block'") == []


async def test_credit_note_covers_the_corrected_invoice_first_and_then_the_oldest_open_invoice(
    april: April,
) -> None:
    starter, made = await plan(april, "Starter", "30.00", 1), []
    ids = await customer(april, starter, date(2026, 4, 1), None)
    await april.do("organizations", "change", ids["organization"], due_days=200)
    for month in (4, 5, 6):
        await april.on(at(month + 1, 1, 6))
        made.append(await bill(april, ids, month=month))
    april_, may, june = made
    await pay(april, june, "20.00")
    note = await april.do("invoices", "credit-note", june["id"])
    note = await april.do("invoices", "finalize", note["id"])
    assert await stands(april, june) == ("paid", "20.00", "10.00", "0.00")
    assert await stands(april, april_) == ("open", "0.00", "20.00", "10.00")
    assert await stands(april, may) == ("open", "0.00", "0.00", "30.00")
    assert [row[1:4] for row in april.rows(ROWS)] == [
        (june["id"], "10", "own"),
        (april_["id"], "20", "oldest"),
    ]
    # An invoice that is void gives its credit free, to be applied as the next document becomes final.
    await april.do("invoices", "void", april_["id"])
    assert await stands(april, note) == (None, "0.00", "-10.00", "-20.00")
    await april.on(at(8, 1, 6))
    july = await bill(april, ids, month=7)
    assert await stands(april, may) == ("open", "0.00", "20.00", "10.00")
    assert str(july["amount_due"]) == "60.00"
    # Money of June that goes back is what its own note gave back.
    [(payment,)] = april.rows("SELECT id FROM payment")
    await april.do("payments", "reverse", int(str(payment)), reference="back")
    assert (await stands(april, june))[3] == "20.00"
    await april.do("invoices", "void", note["id"])
    assert [(await stands(april, each))[2:] for each in (may, june, july)] == [
        ("0.00", "30.00"), ("0.00", "30.00"), ("0.00", "60.00"),
    ]  # fmt: skip


async def test_open_credit_may_not_be_applied_to_an_invoice_of_another_organization(april: April) -> None:
    _, _, note = await downgraded(april, paid=True)
    ids = await customer(april, await plan(april, "Other", "5.00", 1), date(2026, 6, 1), None)
    await april.on(at(7, 1, 6))
    other = await bill(april, ids, month=6)
    assert await stands(april, other) == ("open", "0.00", "0.00", "5.00")
    with pytest.raises(Unprocessable) as refused:
        await april.do("invoices", "apply", note["id"], invoice_id=other["id"], amount=Decimal(1))
    assert refused.value.errors == (
        ("invoice_id", "must be a final invoice of the same organization in USD"),
    )
    assert (await stands(april, note))[3] == "-1074.08"


async def test_applied_credit_cannot_be_changed_and_excess_credit_fails_the_invariant_check(
    april: April,
) -> None:
    await downgraded(april)
    with connected(april.url, autocommit=True) as connection:
        for statement in (
            "UPDATE note_application SET amount = 1", "DELETE FROM note_application",
            "TRUNCATE note_application",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.RestrictViolation):
                connection.execute(statement)
        connection.execute(
            "INSERT INTO note_application (organization_id, note_id, invoice_id, amount, currency, reason,"
            " actor) SELECT organization_id, note_id, invoice_id, 0.01, currency, 'asked', 'x'"
            " FROM note_application"
        )
    found = {(each.invariant, each.detail.partition(",")[0]) for each in await broken(april.url)}
    assert found == {("payments", "is a note")}
    april.is_sound = False
