"""Payments and refunds: rows that are only added, each once by its reference, and what they make of invoices.

Whoever changes what is left to pay of an invoice holds its organization, and calls `settle` behind it, or
`apply_open` where credit may be open.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, case, func, insert, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.handover import COLLECTOR
from gateway.core.billing.payment import (
    ASKED,
    UNCOLLECTIBLE,
    WAITING,
    Receivable,
    require_open,
    require_payable,
    require_returnable,
)
from gateway.core.billing.payment import PAID as STATUS_PAID
from gateway.errors import Conflict, Unprocessable
from persistence.billing import charges, debts, handovers, open_credit, top_ups
from persistence.billing.invoice_source import PAID, money, rest_of
from persistence.billing.journal import rest_before
from persistence.keeper.notices import tell_payment_status
from persistence.subject import Change, Subject, id_in, lock
from persistence.tables import invoice, note_application, payment

_OVERDUE = text("""
UPDATE invoice SET payment_status = 'overdue'
 WHERE payment_status = 'open' AND id = ANY(ARRAY(
       SELECT id FROM invoice WHERE payment_status = 'open' AND due_date < :today
        ORDER BY due_date, id LIMIT :count FOR UPDATE SKIP LOCKED))
RETURNING id""")
# How an invoice stands: what is left to pay, what came in for it and as credit of other invoices' notes, and
# what it comes to without what notes over it give back.
_STANDS = text(f"""
SELECT i.organization_id, i.number, i.payment_status, i.due_date, i.uncollectible_at,
       {rest_before("'infinity'")} AS rest,
       coalesce((SELECT sum(p.amount) FROM payment AS p WHERE p.invoice_id = i.id), 0)
           + coalesce((SELECT sum(a.amount) FROM note_application AS a JOIN invoice AS n ON n.id = a.note_id
                        WHERE a.invoice_id = i.id AND n.corrects_id IS DISTINCT FROM i.id), 0) AS came,
       i.total_amount + coalesce((SELECT sum(n.total_amount) FROM invoice AS n
                                   WHERE n.corrects_id = i.id AND n.status = 'finalized'), 0) AS wanted
  FROM invoice AS i WHERE i.id = :id FOR UPDATE OF i""")  # noqa: S608  # our own words
_TO_APPLY = text("""
SELECT id FROM invoice WHERE id = :id AND organization_id = :organization AND currency = :currency
   AND payment_status IS NOT NULL""")


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
    settle(change, change.row_id)
    return change.fetch()


def refund(change: Change) -> Row:
    """Pay open credit of the command's note back; what is told again is paid back once."""
    row = held(change)
    amount, reference = Decimal(str(change.command.values["amount"])), str(change.command.values["reference"])
    if not _is_known(change.connection, change.row_id, reference, -amount, None):
        _require_open(change, row, amount)
        _add(change, row, change.row_id, -amount)
    return change.fetch()


def apply(change: Change) -> Row:
    """Apply open credit of the command's note to an invoice that a person names."""
    row, invoice_id = held(change), id_in(change.command.values, "invoice_id")
    amount = Decimal(str(change.command.values["amount"]))
    _require_open(change, row, amount)
    of = {"id": invoice_id, "organization": row["organization_id"], "currency": row["currency"]}
    if change.connection.execute(_TO_APPLY, of).first() is None:
        wanted = f"must be a final invoice of the same organization in {row['currency']}"
        raise Unprocessable(errors=(("invoice_id", wanted),))
    require_payable(amount, rest_of(change.connection, invoice_id), str(row["currency"]))
    open_credit.add(change, ASKED, [(change.row_id, invoice_id, amount)])
    settle(change, invoice_id)
    return change.fetch()


def give_up(change: Change) -> Row:
    """Say that nobody hopes for what is left to pay of the command's invoice."""
    row = held(change)
    if row["payment_status"] not in WAITING:
        raise Conflict(f"The {_said(row)} waits for no payment.")
    found = update(invoice).where(invoice.c.id == change.row_id)
    change.connection.execute(found.values(uncollectible_at=change.now))
    apply_open(change, id_in(row, "organization_id"), also=[change.row_id])
    return change.fetch()


def reverse(change: Change) -> Row:
    """Give a payment back, or take a refund back, or a part of it: a row of its own with the sign turned."""
    # A payment never changes, so its row is not locked; its organization is.
    organization_id = id_in(change.fetch(), "organization_id")
    charges.hold(change.connection, organization_id)
    row = change.before = change.fetch()
    values = change.command.values
    asked, reference, left = values.get("amount"), str(values["reference"]), Decimal(str(row["amount_left"]))
    if row["corrects_id"] is not None:
        raise Conflict("This gives a payment back already; record a new payment.")
    invoice_id, rest, sign = id_in(row, "invoice_id"), abs(left), -1 if Decimal(str(row["amount"])) > 0 else 1
    amount = rest if asked is None else Decimal(str(asked))
    # What is told again says what it said before: all that was left then.
    same = None if asked is None else sign * amount
    if not _is_known(change.connection, invoice_id, reference, same, change.row_id):
        require_returnable(amount, rest, str(row["currency"]))
        _add(change, row, invoice_id, sign * amount, change.row_id)
        if sign > 0:
            open_credit.reopen(change, [invoice_id])
        apply_open(change, organization_id, also=[invoice_id])
    return change.fetch()


def apply_open(
    change: Change, organization_id: int, *, past_due: bool = True, also: Collection[int] = ()
) -> None:
    """Apply an organization's open credit to what is past due or, as something becomes final, to all of it.

    Settles the invoices that got some, and those of `also`, whose rest has changed.
    """
    found = open_credit.apply_oldest(change, organization_id, past_due=past_due, also=also)
    for invoice_id in sorted(found | set(also)):
        settle(change, invoice_id)


def settle(change: Change, invoice_id: int) -> None:
    """Bring an invoice's payment status to what is left to pay of it, and tell where it is another."""
    open_credit.give_own(change, invoice_id)
    row = change.connection.execute(_STANDS, {"id": invoice_id}).one()
    if row.payment_status is None:
        return
    standing = Receivable(row.rest, row.due_date, given_up=row.uncollectible_at is not None)
    status = standing.status(change.today)
    if status != row.payment_status:
        kept = update(invoice).where(invoice.c.id == invoice_id).values(payment_status=status)
        change.connection.execute(kept)
        tell_payment_status(change.connection, [invoice_id])
        if change.command.actor != COLLECTOR:
            _tell_collector(change, invoice_id, status, row.came)
    # What notes give back altogether is cancelled, whatever part of it was paid before.
    if status == STATUS_PAID and row.came > 0 and row.wanted > 0:
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
    """`Conflict` where money came in for the command's invoice, or credit of its note was paid back."""
    paid = change.connection.execute(select(PAID).where(invoice.c.id == change.row_id)).scalar_one()
    if paid < 0:
        raise Conflict(f"{-paid.normalize():f} of this note is paid back: reverse the refunds.")
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


def _require_open(change: Change, row: Row, amount: Decimal) -> None:
    """`Conflict` of what has no credit that may be used here; `Unprocessable` where there is not so much."""
    if row["status"] != "finalized" or row["kind"] != "credit_note":
        raise Conflict(f"The {_said(row)} has no credit; only a finalized credit note has.")
    if not open_credit.is_here(change.connection, change.row_id):
        raise Conflict("Stripe has this note's credit: cancel its hand-over first, or use it there.")
    require_open(amount, -rest_of(change.connection, change.row_id), str(row["currency"]))


def _said(row: Row) -> str:
    what = "credit note" if row["kind"] == "credit_note" else "invoice"
    return f"{row['payment_status'] or row['status']} {what}"


_back = payment.alias("back")
_given_back = (
    select(func.coalesce(func.sum(_back.c.amount), 0))
    .where(_back.c.corrects_id == payment.c.id)
    .scalar_subquery()
)
_left = case((payment.c.corrects_id.is_(None), payment.c.amount + _given_back), else_=0)
SUBJECT = Subject(
    payment,
    source=select(
        *(column for column in payment.c if column.name != "amount"),
        money(payment.c.amount, payment.c.currency).label("amount"),
        money(_left, payment.c.currency).label("amount_left"),
    ),
    verbs={"reverse": reverse},
)
APPLICATIONS = Subject(
    note_application,
    source=select(
        *(column for column in note_application.c if column.name != "amount"),
        money(note_application.c.amount, note_application.c.currency).label("amount"),
    ),
)
