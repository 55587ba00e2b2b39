"""Credit additions and removals; the stored balance follows once the counters have applied them.

The row and its control write are stored together. A row that the counters refuse is no addition.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from sqlalchemy import case, exists, func, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.charges import too_many as too_much_money
from gateway.core.billing.money import rounded, times
from gateway.core.billing.payments import NEXT, PREPAID
from gateway.errors import Unprocessable
from persistence.billing import top_ups
from persistence.entity import Entity, EntityWrite, add, id_in, require
from persistence.resources.app_users import acting
from persistence.tables import app_user, control_write, credit_addition, organization


def create(change: EntityWrite) -> Row:
    """Add credits, or remove credits if the number is negative."""
    require(change)
    # A null means that the field is absent.
    values = {name: value for name, value in change.command.values.items() if value is not None}
    change.command = replace(change.command, values=values)
    organization_id, amount = id_in(values, "organization_id"), int(str(values["credits_added"]))
    if (giver := values.get("added_by_id")) is not None:
        # Staff may add credits for any organization; an organization's users only for their own.
        whose = select(app_user.c.organization_id).where(app_user.c.id == giver)
        if change.connection.execute(whose).scalar() not in {None, organization_id}:
            raise Unprocessable(errors=(("added_by_id", "is a user of another organization"),))
    _check_times(change, amount)
    # It is billable: at its own price, and a removal as debt.
    unit_cost = change.command.values.get("unit_cost")
    why = too_much_money(amount, None if unit_cost is None else Decimal(str(unit_cost)))
    if amount < 0 and why is None:
        debt = select(organization.c.credit_unit_cost).where(organization.c.id == organization_id)
        why = too_much_money(amount, change.connection.execute(debt).scalar())
    if why is not None:
        raise Unprocessable(errors=(("credits_added", why),))
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


def create_ordered(change: EntityWrite) -> Row:
    """Store the credit addition of a top-up order; raise `Conflict` if it is stored already."""
    order = top_ups.take_top_up(change.connection, id_in(change.command.values, "order_id"))
    terms = order.terms
    values = {
        "organization_id": order.organization_id, "credits_added": terms["credits"],
        "unit_cost": Decimal(terms["unit_cost"]), "invoicing": terms["invoicing"],
        "remark": "Bought automatically",
    }  # fmt: skip
    change.command = replace(change.command, values=values)
    made = create(change)
    top_ups.top_up_made(change.connection, order, id_in(made, "id"))
    return change.fetch(id_in(made, "id"))


def _check_own_invoice(change: EntityWrite, organization_id: int, amount: int) -> None:
    """Raise `Unprocessable` if a credit addition cannot have an invoice of its own.

    The invoice would be empty, or prepaid credits would expire before they are paid.
    """
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


def _check_times(change: EntityWrite, amount: int) -> None:
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
# Nothing is left of an expired or removed addition, or of a prepaid one that waits for its payment.
_waits = (credit_addition.c.invoicing == PREPAID) & credit_addition.c.control_write_id.is_(None)
_remaining = case(
    (credit_addition.c.expiry_write_id.is_not(None) | _waits, 0),
    else_=func.greatest(credit_addition.c.credits_added - credit_addition.c.spent, 0),
)
ADDITION_SUBJECT = Entity(
    credit_addition,
    source=select(credit_addition, _remaining.label("credits_remaining"), (~_waits).label("in_force")).where(
        ~_refused
    ),
    time="timestamp",
    verbs={"create": create, "create-ordered": create_ordered},
    refers={"organization_id": organization, "added_by_id": app_user},
)
