"""Purchases of credits through Stripe Checkout: our record of each, and its credits once paid.

A paid purchase becomes a credit addition with its own invoice, which is paid at once, in one transaction. The
amount of a purchase is that of this invoice, which is created, read, and rolled back.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from sqlalchemy import func, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.money import times
from gateway.core.billing.payments import PREPAID, purchase_price
from gateway.errors import Conflict, NotFound, Unprocessable
from gateway.features.stripe.handover import COLLECTOR, CheckoutPayment
from persistence.billing import charges, invoices, payments, top_ups
from persistence.billing.invoice_heads import INVOICE_HEADS, rest_of
from persistence.entity import Entity, EntityWrite, add, id_in, lock
from persistence.resources.credit_additions import ADDITION_SUBJECT
from persistence.resources.credit_additions import create as add_credits
from persistence.stripe.collection import uuid_of
from persistence.stripe.outbox import REFERENCE
from persistence.tables import checkout, organization

# Maximum of an organization's unpaid purchases of the last day.
OPEN_MAX = 20
REMARK = "Bought by Stripe Checkout"
# Cancels the hand-over: Stripe has already collected this money.
_LEAVE = text("""
UPDATE handover SET state = 'canceled', done_at = :now WHERE invoice_id = :id AND state = 'waiting'""")


def create(change: EntityWrite) -> Row:
    """Store a purchase of credits before its payment; return its row.

    Raise `Unprocessable` unless its price before tax is from `least` to `most`, values of the command.
    """
    values = change.command.values
    owner_id, count = id_in(values, "organization_id"), int(str(values["credits"]))
    least, most = values["least"], values["most"]
    assert isinstance(least, Decimal)
    assert isinstance(most, Decimal)
    charges.hold(change.connection, owner_id)
    statement = select(organization).where(organization.c.id == owner_id, organization.c.deleted_at.is_(None))
    owner = change.connection.execute(statement).mappings().one()
    price = purchase_price(dict(owner))
    if price is None:
        raise Conflict("No price of credits is agreed with this organization.")
    if not least <= times(count, price) <= most:
        message = f"must come to {least:f} to {most:f} {owner['currency']}, at {price.normalize():f} each"
        raise Unprocessable(errors=(("credits", message),))
    here = checkout.c
    begun = (here.organization_id == owner_id) & here.paid_at.is_(None)
    open_ = select(func.count()).where(begun, here.created_at > change.now - timedelta(days=1))
    if change.connection.execute(open_).scalar_one() >= OPEN_MAX:
        raise Conflict(f"{OPEN_MAX} purchases were begun within a day and not paid: pay one, or go on later.")
    made = {"credits": count, "unit_cost": price, "currency": owner["currency"]}
    with change.connection.begin_nested() as trial:
        _, bill = _add_and_bill(replace(change, intents=[]), {**made, "organization_id": owner_id})
        trial.rollback()
    kept = {**made, "amount": bill["total_amount"], "requested_by": change.command.actor.scope}
    change.command = replace(change.command, values={**kept, "organization_id": owner_id})
    return change.fetch(add(change))


def take(change: EntityWrite) -> Row:
    """Add the credits of a paid purchase, once; raise `NotFound` if the purchase is unknown."""
    value = change.command.values["told"]
    assert isinstance(value, CheckoutPayment)
    here = checkout.c
    query = select(here.id).where(
        here.key == uuid_of(value.key), here.organization_id == value.organization_id
    )
    result = change.connection.execute(query).scalar()
    if result is None:
        raise NotFound
    charges.hold(change.connection, value.organization_id)
    change.command = replace(change.command, id=result)
    row = lock(change)
    if (value.amount, value.currency) != (row["amount"], row["currency"]):
        raise NotFound
    if row["credit_addition_id"] is None:
        addition_id, bill = _add_and_bill(change, row)
        remains = _record_payment(change, id_in(bill, "id"), value)
        kept = {"credit_addition_id": addition_id, "remote": value.session, "remains": remains}
        done = update(checkout).where(here.id == result).values(**kept, paid_at=change.now)
        change.connection.execute(done)
    return change.fetch(result)


def _add_and_bill(change: EntityWrite, row: Row) -> tuple[int, Row]:
    """Create a credit addition, which is in force once paid, and its final invoice; return its id and the invoice."""
    owner = {"organization_id": row["organization_id"]}
    terms = {
        **owner, "credits_added": row["credits"], "unit_cost": row["unit_cost"], "invoicing": PREPAID,
        "remark": REMARK,
    }  # fmt: skip
    to_add = replace(change.command, resource="credit-additions", actor=COLLECTOR, id=None, values=terms)
    addition = add_credits(replace(change, subject=ADDITION_SUBJECT, command=to_add, before=None))
    source = {**owner, "source": "credit_addition", "source_id": addition["id"]}
    to_bill = replace(to_add, resource="invoices", values=source)
    invoice = invoices.bill_top_up(replace(change, subject=invoices.SUBJECT, command=to_bill, before=None))
    return id_in(addition, "id"), invoice


def _record_payment(change: EntityWrite, invoice_id: int, payment: CheckoutPayment) -> str | None:
    """Record the payment in `payment`, put the credits in force; return a message if more was paid than due."""
    change.connection.execute(_LEAVE, {"id": invoice_id, "now": change.now})
    amount = min(payment.amount, rest_of(change.connection, invoice_id))
    if amount > 0:
        values = {"amount": amount, "reference": f"{REFERENCE}{payment.session}"}
        asked = replace(change.command, resource="invoices", id=invoice_id, values=values)
        payments.record(replace(change, subject=INVOICE_HEADS, command=asked, before=None))
    # Even if a tax or credit note has changed the invoice since: the requested amount is paid.
    top_ups.release(change, invoice_id)
    beyond = payment.amount - max(Decimal(0), amount)
    return f"{payment.currency} {beyond.normalize():f} more came in than was left to pay." if beyond else None


CHECKOUTS = Entity(checkout, verbs={"create": create, "take": take})
