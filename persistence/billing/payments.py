"""Payments: rows that are only added, each once by its reference, and what they make of their invoice.

Whoever changes what is left to pay of an invoice holds its organization, and calls `settle` behind it.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, func, insert, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.handover import COLLECTOR
from gateway.core.billing.payment import PAID as STATUS_PAID
from gateway.core.billing.payment import (
    UNCOLLECTIBLE,
    WAITING,
    Receivable,
    require_payable,
    require_returnable,
)
from gateway.errors import Conflict
from persistence.billing import charges, debts, handovers, top_ups
from persistence.billing.invoice_source import PAID, REST, money, rest_of
from persistence.keeper.notices import tell_payment_status
from persistence.subject import Change, Subject, id_in, lock
from persistence.tables.billing import invoice, payment

_OVERDUE = text("""
UPDATE invoice SET payment_status = 'overdue'
 WHERE payment_status = 'open' AND id = ANY(ARRAY(
       SELECT id FROM invoice WHERE payment_status = 'open' AND due_date < :today
        ORDER BY due_date, id LIMIT :count FOR UPDATE SKIP LOCKED))
RETURNING id""")


def held(change: Change) -> Row:
    """The command's row, as it stands once nobody else invoices its organization."""
    charges.hold(change.connection, id_in(change.fetch(), "organization_id"))
    return lock(change)


def record(change: Change) -> Row:
    """Take a payment of the command's invoice; one that is told again is taken once."""
    row = held(change)
    amount, reference = Decimal(str(change.command.values["amount"])), str(change.command.values["reference"])
    if _is_known(change.connection, change.row_id, reference, amount, None):
        return row
    if row["status"] != "finalized" or row["kind"] != "invoice":
        raise Conflict(f"The {_said(row)} cannot be paid; only a finalized invoice can.")
    require_payable(amount, rest_of(change.connection, change.row_id), str(row["currency"]))
    _add(change, row, change.row_id, amount)
    return change.fetch()


def give_up(change: Change) -> Row:
    """Say that nobody hopes for what is left to pay of the command's invoice."""
    row = held(change)
    if row["payment_status"] not in WAITING:
        raise Conflict(f"The {_said(row)} waits for no payment.")
    found = update(invoice).where(invoice.c.id == change.row_id)
    change.connection.execute(found.values(uncollectible_at=change.now))
    settle(change, change.row_id)
    return change.fetch()


def reverse(change: Change) -> Row:
    """Give a payment back, or a part of it: a row of its own, below zero."""
    # A payment never changes, so its row is not locked; its organization is.
    charges.hold(change.connection, id_in(change.fetch(), "organization_id"))
    row = change.before = change.fetch()
    values = change.command.values
    asked, reference, left = values.get("amount"), str(values["reference"]), row["amount_left"]
    if row["corrects_id"] is not None:
        raise Conflict("This gives a payment back already; record a new payment.")
    invoice_id, rest = id_in(row, "invoice_id"), Decimal(str(left))
    amount = rest if asked is None else Decimal(str(asked))
    # What is told again says what it said before: all that was left then.
    same = None if asked is None else -amount
    if not _is_known(change.connection, invoice_id, reference, same, change.row_id):
        require_returnable(amount, rest, str(row["currency"]))
        _add(change, row, invoice_id, -amount, change.row_id)
    return change.fetch()


def settle(change: Change, invoice_id: int) -> None:
    """Bring an invoice's payment status to what is left to pay of it, and tell where it is another."""
    here = invoice.c
    found = select(
        here.organization_id, here.number, here.payment_status, here.due_date, here.uncollectible_at,
        REST.label("rest"), PAID.label("paid"),
    )  # fmt: skip
    row = change.connection.execute(found.where(here.id == invoice_id).with_for_update(of=invoice)).one()
    if row.payment_status is None:
        return
    standing = Receivable(row.rest, row.due_date, given_up=row.uncollectible_at is not None)
    status = standing.status(change.today)
    if status != row.payment_status:
        change.connection.execute(update(invoice).where(here.id == invoice_id).values(payment_status=status))
        tell_payment_status(change.connection, [invoice_id])
        if change.command.actor != COLLECTOR:
            _tell_collector(change, invoice_id, status, row.paid)
    # What a note gives back altogether is cancelled, whatever part of it was paid before.
    if status == STATUS_PAID and row.paid > 0 and row.rest + row.paid > 0:
        top_ups.release(change, invoice_id)
        debts.give(change, {"id": invoice_id, "organization_id": row.organization_id, "number": row.number})


def fall_overdue(connection: Connection, today: date, count: int) -> int:
    """Let open invoices whose day is over be overdue, so many at once; answers how many were."""
    fallen = list(connection.execute(_OVERDUE, {"today": today, "count": count}).scalars())
    if fallen:
        tell_payment_status(connection, fallen)
    return len(fallen)


def _tell_collector(change: Change, invoice_id: int, status: str, paid: Decimal) -> None:
    """Whoever collects an invoice's money has to know what came in elsewhere, or was given up."""
    if status == STATUS_PAID and paid > 0:
        handovers.tell(change.connection, invoice_id, "paid")
    elif status == UNCOLLECTIBLE:
        handovers.tell(change.connection, invoice_id, "uncollectible")


def refuse_while_paid(change: Change) -> None:
    """`Conflict` where money came in for the command's invoice."""
    paid = change.connection.execute(select(PAID).where(invoice.c.id == change.row_id)).scalar_one()
    if paid:
        raise Conflict(
            f"{paid.normalize():f} of this invoice is paid: give the payments back, or write a credit note."
        )


def _is_known(
    connection: Connection, invoice_id: int, reference: str, amount: Decimal | None, corrects_id: int | None
) -> bool:
    """Whether this was told before; `Conflict` where another payment of the invoice has its reference."""
    here = payment.c
    found = select(here.amount, here.corrects_id, here.currency)
    known: Any = connection.execute(
        found.where(here.invoice_id == invoice_id, here.reference == reference)
    ).first()
    if known is None:
        return False
    if known.corrects_id != corrects_id or amount not in {None, known.amount}:
        taken = f"{known.currency} {known.amount.normalize():f}"
        raise Conflict(
            f"The reference {reference!r} stands for {taken} already; another amount needs another."
        )
    return True


def _add(change: Change, row: Row, invoice_id: int, amount: Decimal, corrects_id: int | None = None) -> None:
    made = insert(payment).values(
        organization_id=row["organization_id"], invoice_id=invoice_id, amount=amount,
        currency=row["currency"], reference=change.command.values["reference"], corrects_id=corrects_id,
        created_at=change.now,
    )  # fmt: skip
    change.connection.execute(made)
    settle(change, invoice_id)


def _said(row: Row) -> str:
    what = "credit note" if row["kind"] == "credit_note" else "invoice"
    return f"{row['payment_status'] or row['status']} {what}"


_back = payment.alias("back")
_given_back = (
    select(func.coalesce(func.sum(_back.c.amount), 0))
    .where(_back.c.corrects_id == payment.c.id)
    .scalar_subquery()
)
SUBJECT = Subject(
    payment,
    source=select(
        *(column for column in payment.c if column.name != "amount"),
        money(payment.c.amount, payment.c.currency).label("amount"),
        money(func.greatest(payment.c.amount + _given_back, 0), payment.c.currency).label("amount_left"),
    ),
    verbs={"reverse": reverse},
)
