"""Credits given to organizations and taken back; the balance follows when the counters have it.

The row and the intent are written together. What the counters refuse never was an addition.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from sqlalchemy import case, exists, func, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.bounds import too_many
from gateway.core.billing.payment import NEXT, PREPAID
from gateway.core.billing.pricing import rounded, times
from gateway.errors import Unprocessable
from persistence.billing import top_up_orders
from persistence.resources.app_users import acting
from persistence.subject import Change, Subject, add, id_in, require
from persistence.tables import app_user, control_write, credit_addition, organization


def create(change: Change) -> Row:
    """Give credits, or take them back where the number is negative."""
    require(change)
    # What is null is as if it was not said.
    values = {name: value for name, value in change.command.values.items() if value is not None}
    change.command = replace(change.command, values=values)
    organization_id, amount = id_in(values, "organization_id"), int(str(values["credits_added"]))
    _check_giver(change, organization_id)
    _check_times(change, amount)
    _check_price(change, organization_id, amount)
    _check_own_invoice(change, organization_id, amount)
    write_id = None
    if values.get("invoicing") != PREPAID:
        [write_id] = change.intend(
            [f"organization:{organization_id}"],
            "credits",
            {"amount": amount},
            organization_id=organization_id,
        )
    defaults = {
        "added_by_id": acting(change.command.actor),
        "category": "paid" if amount > 0 else "correction",
        "timestamp": change.now,
    }
    return change.fetch(add(change, **{**defaults, **values, "control_write_id": write_id}))


def create_ordered(change: Change) -> Row:
    """Make the addition of an order; `Conflict` where it is made already."""
    order = top_up_orders.take(change.connection, id_in(change.command.values, "order_id"))
    terms = order.terms
    values = {
        "organization_id": order.organization_id, "credits_added": terms["credits"],
        "unit_cost": Decimal(terms["unit_cost"]), "invoicing": terms["invoicing"],
        "remark": "Bought automatically",
    }  # fmt: skip
    change.command = replace(change.command, values=values)
    made = create(change)
    top_up_orders.made(change.connection, order, id_in(made, "id"))
    return change.fetch(id_in(made, "id"))


def _check_giver(change: Change, organization_id: int) -> None:
    """Staff may give credits to anybody, an organization's users only be named for their own."""
    giver = change.command.values.get("added_by_id")
    if giver is None:
        return
    of = change.connection.execute(select(app_user.c.organization_id).where(app_user.c.id == giver)).scalar()
    if of not in {None, organization_id}:
        raise Unprocessable(errors=(("added_by_id", "is a user of another organization"),))


def _check_price(change: Change, organization_id: int, amount: int) -> None:
    """What it comes to can be billed: at its own price, and what is taken back as debt."""
    unit_cost = change.command.values.get("unit_cost")
    why = too_many(amount, None if unit_cost is None else Decimal(str(unit_cost)))
    if amount < 0 and why is None:
        debt = select(organization.c.credit_unit_cost).where(organization.c.id == organization_id)
        why = too_many(amount, change.connection.execute(debt).scalar())
    if why is not None:
        raise Unprocessable(errors=(("credits_added", why),))


def _check_own_invoice(change: Change, organization_id: int, amount: int) -> None:
    """An invoice of its own has something on it, and nothing that waits for its payment expires meanwhile."""
    values = change.command.values
    invoicing, unit_cost = values.get("invoicing"), values.get("unit_cost")
    if invoicing in {None, NEXT}:
        return
    errors = []
    owner = select(organization.c.currency).where(organization.c.id == organization_id)
    currency = str(change.connection.execute(owner).scalar_one())
    if amount < 0:
        errors.append(("credits_added", "what is taken back has no invoice of its own"))
    if values.get("category") not in {None, "paid"}:
        errors.append(("category", f"must be paid where invoicing is {invoicing}"))
    if unit_cost is None:
        errors.append(("unit_cost", f"is required where invoicing is {invoicing}"))
    elif not rounded(times(amount, Decimal(str(unit_cost))), currency):
        errors.append(("unit_cost", f"comes to no {currency} that can be paid"))
    if invoicing == PREPAID and values.get("expires_at") is not None:
        errors.append(("expires_at", "what waits for its payment does not expire"))
    if errors:
        raise Unprocessable(errors=tuple(errors))


def _check_times(change: Change, amount: int) -> None:
    errors = []
    expires_at, timestamp = change.command.values.get("expires_at"), change.command.values.get("timestamp")
    if expires_at is not None:
        if amount < 0:
            errors.append(("expires_at", "what is taken back does not expire"))
        elif expires_at <= change.now:  # type: ignore[operator]  # an instant, checked by the door
            errors.append(("expires_at", "must be in the future"))
    if timestamp is not None and timestamp > change.now:  # type: ignore[operator]
        errors.append(("timestamp", "must not be in the future"))
    if errors:
        raise Unprocessable(errors=tuple(errors))


_refused = exists().where(
    control_write.c.id == credit_addition.c.control_write_id, control_write.c.state == "refused"
)

# Nothing is left of what was taken back or has expired, and nothing is there of what waits for its payment.
_waits = (credit_addition.c.invoicing == PREPAID) & credit_addition.c.control_write_id.is_(None)
_remaining = case(
    (credit_addition.c.expiry_write_id.is_not(None) | _waits, 0),
    else_=func.greatest(credit_addition.c.credits_added - credit_addition.c.spent, 0),
)

SUBJECT = Subject(
    credit_addition,
    source=select(credit_addition, _remaining.label("credits_remaining"), (~_waits).label("in_force")).where(
        ~_refused
    ),
    time="timestamp",
    verbs={"create": create, "create-ordered": create_ordered},
    refers={"organization_id": organization, "added_by_id": app_user},
)
