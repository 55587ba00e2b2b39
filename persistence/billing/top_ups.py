"""Credits with an invoice of their own: billed once, and where they wait for it, in force once it is paid.

The invoice is made by the keeper, the payment comes by any door: both hold the organization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, text

from gateway.errors import Conflict
from persistence.billing.charge_facts import PREPAID, insert_of
from persistence.subject import Change

_DUE = text("""
SELECT a.id, a.organization_id FROM credit_addition AS a
 WHERE a.invoicing <> 'next' AND a.invoice_id IS NULL AND a.id > :after
   AND (a.invoicing = 'prepaid' OR EXISTS (SELECT FROM charge AS c WHERE c.fact = 'addition:' || a.id))
 ORDER BY a.id LIMIT :count""")
_CHARGE = text(insert_of(PREPAID))
# A person may have billed it before; then that is its invoice.
_BILLED = text("""
SELECT coalesce(a.invoice_id, c.invoice_id) FROM credit_addition AS a
  LEFT JOIN charge AS c ON c.fact = 'addition:' || a.id WHERE a.id = :addition""")
_KEEP = text("""
UPDATE credit_addition SET invoice_id = :invoice WHERE id = :addition AND invoice_id IS NULL""")
_WAITING = """
  FROM credit_addition AS a WHERE a.invoice_id = :invoice AND a.invoicing = 'prepaid'
   AND a.control_write_id IS NULL"""
_RELEASED = text(
    f"SELECT a.id, a.organization_id, a.credits_added {_WAITING} ORDER BY a.id FOR UPDATE"
)  # our own words
_IN_FORCE = text("UPDATE credit_addition SET control_write_id = :write WHERE id = :addition")
_WAITS = text(f"SELECT EXISTS (SELECT {_WAITING})")  # our own words


class TopUp(NamedTuple):
    """An addition that is to have an invoice of its own, and whose it is."""

    addition_id: int
    organization_id: int


def due(connection: Connection, after: int, count: int) -> Sequence[TopUp]:
    """Additions that are to have an invoice of their own and have none, those behind `after`, by id."""
    return [TopUp(*row) for row in connection.execute(_DUE, {"after": after, "count": count})]


def billed_by(connection: Connection, addition_id: int) -> int | None:
    """The invoice that has an addition's charge."""
    found: int | None = connection.execute(_BILLED, {"addition": addition_id}).scalar_one()
    return found


def charge(connection: Connection, addition_id: int) -> None:
    """Charge credits that wait for their payment."""
    connection.execute(_CHARGE, {"addition": addition_id})


def keep_invoice(connection: Connection, addition_id: int, invoice_id: int) -> None:
    """Note which invoice is its own."""
    connection.execute(_KEEP, {"addition": addition_id, "invoice": invoice_id})


def release(change: Change, invoice_id: int) -> None:
    """Give the credits that waited for this invoice, once."""
    for row in change.connection.execute(_RELEASED, {"invoice": invoice_id}).all():
        account = f"organization:{row.organization_id}"
        given = {"amount": row.credits_added}
        [write] = change.intend([account], "credits", given, organization_id=row.organization_id)
        change.connection.execute(_IN_FORCE, {"write": write, "addition": row.id})


def refuse_while_waiting(change: Change) -> None:
    """`Conflict` where credits wait for the command's invoice: void, they would be owed and never given."""
    if change.connection.execute(_WAITS, {"invoice": change.row_id}).scalar_one():
        raise Conflict("Credits wait for this invoice; write a credit note, and they are not given.")
