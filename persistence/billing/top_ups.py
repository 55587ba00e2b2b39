"""Credit additions with an invoice of their own: billed once; prepaid ones come into force when it is paid.

The keeper makes the invoice, and payments may be recorded by any process: both lock the organization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from gateway.errors import Conflict
from persistence.billing.charges import PREPAID, driver_level, insert_of
from persistence.entity import EntityWrite
from persistence.keeper.occasions import data_of, message_query
from persistence.queries import query

ADDITIONS_DUE = query("top_ups.additions_due", "Select top-ups whose credits are due", """
SELECT a.id, a.organization_id FROM credit_addition AS a
 WHERE a.invoicing <> 'next' AND a.invoice_id IS NULL AND a.id > :after
   AND (a.invoicing = 'prepaid' OR EXISTS (SELECT FROM charge AS c WHERE c.fact = 'addition:' || a.id))
 ORDER BY a.id LIMIT :count""")  # fmt: skip
_CHARGE = query("top_ups.charge", "Charge a prepaid addition", insert_of(PREPAID))  # fmt: skip
# A person may have billed it before: that is its invoice then.
_BILLED = query("top_ups.billed", "Select the invoice of an addition", """
SELECT coalesce(a.invoice_id, c.invoice_id) FROM credit_addition AS a
  LEFT JOIN charge AS c ON c.fact = 'addition:' || a.id WHERE a.id = :addition""")  # fmt: skip
_KEEP = query("top_ups.keep", "Store the invoice of an addition", """
UPDATE credit_addition SET invoice_id = :invoice WHERE id = :addition AND invoice_id IS NULL""")  # fmt: skip
_WAITING = """
  FROM credit_addition AS a WHERE a.invoice_id = :invoice AND a.invoicing = 'prepaid'
   AND a.control_write_id IS NULL"""
_RELEASED = query("top_ups.released", "Select paid additions",
    f"SELECT a.id, a.organization_id, a.credits_added {_WAITING} ORDER BY a.id FOR UPDATE")  # fmt: skip
_IN_FORCE = query("top_ups.in_force", "Store the control write of an addition",
    "UPDATE credit_addition SET control_write_id = :write WHERE id = :addition")  # fmt: skip
_WAITS = query("top_ups.waits", "Select whether an addition waits",
    f"SELECT EXISTS (SELECT {_WAITING})")  # fmt: skip


class TopUp(NamedTuple):
    addition_id: int
    organization_id: int


def due(connection: Connection, after: int, count: int) -> Sequence[TopUp]:
    """Return up to `count` credit additions with ids above `after` that still need their own invoice."""
    return [TopUp(*row) for row in connection.execute(ADDITIONS_DUE, {"after": after, "count": count})]


def billed_by(connection: Connection, addition_id: int) -> int | None:
    """Return the id of the invoice that bills an addition; None if there is none."""
    found: int | None = connection.execute(_BILLED, {"addition": addition_id}).scalar_one()
    return found


def charge(connection: Connection, addition_id: int) -> None:
    """Charge a prepaid credit addition."""
    connection.execute(_CHARGE, {"addition": addition_id})


def keep_invoice(connection: Connection, addition_id: int, invoice_id: int) -> None:
    connection.execute(_KEEP, {"addition": addition_id, "invoice": invoice_id})


def release(change: EntityWrite, invoice_id: int) -> None:
    for row in change.connection.execute(_RELEASED, {"invoice": invoice_id}).all():
        account = f"organization:{row.organization_id}"
        given = {"amount": row.credits_added}
        [write] = change.intend([account], "credits", given, organization_id=row.organization_id)
        change.connection.execute(_IN_FORCE, {"write": write, "addition": row.id})


def refuse_while_waiting(change: EntityWrite) -> None:
    """Raise `Conflict` if prepaid credits wait for the payment of the command's invoice.

    Once the invoice is void, the credits would never be given.
    """
    if change.connection.execute(_WAITS, {"invoice": change.row_id}).scalar_one():
        raise Conflict("Credits wait for this invoice; write a credit note, and they are not given.")


# Automatic top-ups: credits are ordered when a balance falls to its threshold.
#
# The transaction that stores a movement stores the order at once. The keeper's clock checks balances as well,
# as a month begins without a movement and a refused call makes none. The keeper turns an order into a credit
# addition. An organization has at most one open order: until the credits are in the account, or the order is
# abandoned.

# At most this many a month (UTC), including abandoned ones.
ORDER = """
INSERT INTO top_up_order (organization_id, seq, balance)
SELECT o.id, o.credit_last_seq, o.credit_balance FROM organization AS o
 WHERE {which} AND o.auto_top_up IS NOT NULL AND o.deleted_at IS NULL
   AND o.credit_balance <= (o.auto_top_up->>'threshold')::bigint
   AND (SELECT count(*) FROM top_up_order AS t
         WHERE t.organization_id = o.id AND t.created_at >= date_trunc('month', now(), 'UTC'))
       < (o.auto_top_up->>'monthly_max')::bigint
ON CONFLICT DO NOTHING"""
# Its credits are in the account.
CLOSE = """
UPDATE top_up_order AS t SET closed_at = now()
  FROM credit_addition AS a JOIN control_write AS w ON w.id = a.control_write_id
 WHERE {which} AND t.closed_at IS NULL AND a.id = t.credit_addition_id AND w.state = 'done'"""
# For a flush: for organizations whose credit movements it stored.
ORDER_AFTER = driver_level(ORDER, which="o.id = ANY(%s)")
CLOSE_AFTER = driver_level(CLOSE, which="t.organization_id = ANY(%s)")
_ORDER = query("top_ups.order", "Order credits of an organization",
    ORDER.format(which="o.id = :organization"))  # fmt: skip
# An order that was abandoned at this movement is not repeated within the month: somebody cancelled it.
_ORDER_LOW = query("top_ups.order_low", "Order credits of organizations with a low balance",
    ORDER.format(
        which="""NOT EXISTS (SELECT FROM top_up_order AS t
         WHERE t.organization_id = o.id AND t.seq = o.credit_last_seq
           AND t.created_at >= date_trunc('month', now(), 'UTC'))"""
    )
)  # fmt: skip
# Orders that will never give credits: automatic top-ups are off, the counters refused, or a note refunded the
# invoice that they wait for.
_ABANDON = query("top_ups.abandon", "Close orders that will give no credits", """
UPDATE top_up_order AS t SET closed_at = now()
 WHERE t.closed_at IS NULL AND (
    t.credit_addition_id IS NULL AND EXISTS (
        SELECT FROM organization AS o
         WHERE o.id = t.organization_id AND (o.auto_top_up IS NULL OR o.deleted_at IS NOT NULL))
    OR EXISTS (
        SELECT FROM credit_addition AS a LEFT JOIN control_write AS w ON w.id = a.control_write_id
          LEFT JOIN invoice AS i ON i.id = a.invoice_id
         WHERE a.id = t.credit_addition_id
           AND (w.state = 'refused' OR w.id IS NULL AND i.payment_status = 'paid')))""")  # fmt: skip
# Open orders and low balances are checked repeatedly.
ORDERS_WAIT = """
SELECT FROM top_up_order WHERE closed_at IS NULL
 UNION ALL SELECT FROM organization WHERE auto_top_up IS NOT NULL AND deleted_at IS NULL
   AND credit_balance <= (auto_top_up->>'threshold')::bigint"""
_ORDERS_DUE = query("top_ups.orders_due", "Select open orders of credits", """
SELECT id FROM top_up_order WHERE closed_at IS NULL AND credit_addition_id IS NULL AND id > :after
 ORDER BY id LIMIT :count""")  # fmt: skip
_TAKE = query("top_ups.take", "Lock an order of credits", """
SELECT t.id, t.organization_id, t.seq, o.auto_top_up AS terms FROM top_up_order AS t
  JOIN organization AS o ON o.id = t.organization_id AND o.auto_top_up IS NOT NULL AND o.deleted_at IS NULL
 WHERE t.id = :id AND t.closed_at IS NULL AND t.credit_addition_id IS NULL FOR UPDATE""")  # fmt: skip
_MADE = query("top_ups.made", "Store the addition of an order",
    "UPDATE top_up_order SET credit_addition_id = :addition WHERE id = :id")  # fmt: skip
_CROSSED = query("top_ups.crossed", "Store the movement that crossed the threshold",
    "UPDATE credit_addition SET crossed_seq = :seq WHERE id = :addition")  # fmt: skip
_DATA = data_of(
    "credits.topped_up",
    organization_id="o.id", organization="o.name", credit_balance="t.balance", credit_addition_id="a.id",
    credits_added="a.credits_added", invoicing="a.invoicing", unit_cost="trim_scale(a.unit_cost)::text",
    currency="o.currency", monthly_max="(o.auto_top_up->>'monthly_max')::bigint",
    of_month="""(SELECT count(*) FROM top_up_order AS m WHERE m.organization_id = o.id
                    AND m.created_at >= date_trunc('month', t.created_at, 'UTC') AND m.id <= t.id)""",
)  # fmt: skip
_TELL = message_query(
    "top_ups",
    "Create messages about credits that were bought automatically",
    f"""
WITH news AS (
    SELECT 'credits.topped_up' AS event, 'topped_up:' || t.id AS occasion, {_DATA} AS data
      FROM top_up_order AS t JOIN organization AS o ON o.id = t.organization_id
      JOIN credit_addition AS a ON a.id = t.credit_addition_id WHERE t.id = :id
)""",
)


def order_top_up(connection: Connection, organization_id: int) -> None:
    """Order credits if the balance is already at its threshold and no order is open."""
    connection.execute(_ORDER, {"organization": organization_id})


def top_up_orders_due(connection: Connection, after: int, count: int) -> Sequence[int]:
    """Return up to `count` ids of orders without an addition, in order, beyond `after`.

    Before that, abandoned orders are closed, and orders for low balances are created.
    """
    connection.execute(_ABANDON)
    connection.execute(_ORDER_LOW)
    return list(connection.execute(_ORDERS_DUE, {"after": after, "count": count}).scalars())


def take_top_up(connection: Connection, order_id: int) -> Any:
    """Lock an order and its organization and return them; raise `Conflict` if the order is done."""
    row = connection.execute(_TAKE, {"id": order_id}).first()
    if row is None:
        raise Conflict("This order is done.")
    return row


def top_up_made(connection: Connection, order: Any, addition_id: int) -> None:
    connection.execute(_MADE, {"id": order.id, "addition": addition_id})
    connection.execute(_CROSSED, {"seq": order.seq, "addition": addition_id})
    connection.execute(_TELL, {"id": order.id})
