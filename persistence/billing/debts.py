"""Credits that are used beyond the balance: what a credit of it costs, what of it is owed for and given back.

What no addition paid is debt, by the day it was used on and the price it then had. An addition that covers
some of it before an invoice has it takes its charge back, since the addition has a price of its own. What an
invoice has billed stays billed; whoever pays the invoice gets as many credits, once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from sqlalchemy import Connection, insert, text

from gateway.core.accounts.administration import Row
from gateway.errors import Conflict
from persistence.resources.app_users import acting
from persistence.subject import Change, id_in
from persistence.tables import credit_addition, credit_price

POSTPAID = "postpaid"

_PRICES = text("""
SELECT since, unit_cost FROM credit_price WHERE organization_id = :organization ORDER BY since""")
_PRICED = text("""
SELECT DISTINCT organization_id FROM credit_price
 WHERE organization_id = ANY(cast(:organizations AS bigint[])) ORDER BY 1""")
# What is covered is the oldest, so of a day what is billed before what is not.
_COVER = text("""
UPDATE credit_debt AS d SET open_quantity = d.open_quantity - n.quantity,
       quantity = d.billed_quantity + least(d.quantity - d.billed_quantity, d.open_quantity - n.quantity)
  FROM unnest(cast(:days AS date[]), cast(:costs AS numeric[]), cast(:quantities AS bigint[]))
    AS n (day, unit_cost, quantity)
 WHERE d.organization_id = :organization AND d.day = n.day AND d.unit_cost = n.unit_cost""")
_GROW = text("""
INSERT INTO credit_debt AS d (organization_id, day, unit_cost, open_quantity, quantity)
SELECT :organization, day, unit_cost, quantity, quantity
  FROM unnest(cast(:days AS date[]), cast(:costs AS numeric[]), cast(:quantities AS bigint[]))
    AS n (day, unit_cost, quantity) ORDER BY day, unit_cost
ON CONFLICT (organization_id, day, unit_cost) DO UPDATE SET
    open_quantity = d.open_quantity + excluded.open_quantity, quantity = d.quantity + excluded.quantity""")
_OF_INVOICE = """
  FROM (SELECT organization_id, (period_start AT TIME ZONE 'UTC')::date AS day, unit_price,
               sum(quantity) AS quantity
          FROM charge WHERE invoice_id = ANY(cast(:invoices AS bigint[])) AND source = 'credit_debt'
           AND reason NOT IN ('void', 'credited', 'credit_void') GROUP BY 1, 2, 3) AS n
 WHERE d.organization_id = n.organization_id AND d.day = n.day AND d.unit_cost = n.unit_price"""
_BILL = text(f"""
UPDATE credit_debt AS d SET billed_quantity = d.billed_quantity + n.quantity
{_OF_INVOICE}""")  # noqa: S608  # our own words
_UNBILL = text(f"""
UPDATE credit_debt AS d SET billed_quantity = d.billed_quantity - n.quantity,
       quantity = d.billed_quantity - n.quantity
           + least(d.quantity - d.billed_quantity + n.quantity, d.open_quantity)
{_OF_INVOICE}""")  # noqa: S608  # our own words
_BILLED = text("""
SELECT DISTINCT (period_start AT TIME ZONE 'UTC')::date AS day, unit_price FROM charge
 WHERE invoice_id = :invoice AND source = 'credit_debt'
   AND reason NOT IN ('void', 'credited', 'credit_void')""")
# What an invoice billed, less what notes in force gave back.
_TO_GIVE = text("""
SELECT coalesce(sum(quantity), 0)::bigint FROM (
    SELECT quantity FROM charge WHERE invoice_id = :invoice AND source = 'credit_debt'
       AND reason NOT IN ('void', 'credited', 'credit_void')
    UNION ALL
    SELECT c.quantity FROM charge AS o JOIN charge AS c ON c.corrects_id = o.id AND c.reason = 'credited'
     WHERE o.invoice_id = :invoice AND o.source = 'credit_debt'
       AND NOT EXISTS (SELECT FROM charge AS v
                        WHERE v.corrects_id = c.id AND v.reason = 'credit_void')) AS n""")
_GIVEN = text("""
SELECT EXISTS (SELECT FROM credit_addition WHERE invoice_id = :invoice AND invoicing = 'postpaid')""")

# A day, and what a credit cost on it.
Lot = tuple[date, Decimal]


@dataclass(frozen=True, slots=True)
class CreditPrices:
    """What a credit beyond the balance cost since when, oldest first; None cost nothing."""

    since: Sequence[datetime]
    costs: Sequence[Decimal | None]

    def lot_of(self, used_at: datetime) -> Lot | None:
        """The day and price of debt that was made at a moment; None of what is free."""
        place = bisect_right(self.since, used_at)
        cost = self.costs[place - 1] if place else None
        return None if cost is None else (used_at.astimezone(UTC).date(), cost)


def prices(connection: Connection, organization_id: int) -> CreditPrices:
    """The prices an organization's debt had."""
    rows = connection.execute(_PRICES, {"organization": organization_id}).all()
    return CreditPrices([row.since for row in rows], [row.unit_cost for row in rows])


def keep_price(change: Change, row: Row) -> None:
    """Note what debt costs from now on, where the command's organization says another price than before."""
    before = None if change.before is None else change.before["credit_unit_cost"]
    cost = row["credit_unit_cost"]
    if cost != before:
        noted = insert(credit_price).values(organization_id=row["id"], since=change.now, unit_cost=cost)
        change.connection.execute(noted)


def priced(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    """Organizations whose debt ever cost something, in the order of their ids."""
    return list(connection.execute(_PRICED, {"organizations": list(organization_ids)}).scalars())


def cover(connection: Connection, organization_id: int, covered: Mapping[Lot, int]) -> None:
    """Note that additions cover debt: what no invoice has of it is owed no more."""
    _move(connection, _COVER, organization_id, covered)


def grow(connection: Connection, organization_id: int, grown: Mapping[Lot, int]) -> None:
    """Note debt that was made."""
    _move(connection, _GROW, organization_id, grown)


def bill(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Note that invoices have charges of debt."""
    connection.execute(_BILL, {"invoices": list(invoice_ids)})


def unbill(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Note that invoices are void: what additions have covered meanwhile is owed no more."""
    connection.execute(_UNBILL, {"invoices": list(invoice_ids)})


def billed_by(connection: Connection, invoice_id: int) -> set[Lot]:
    """The debt that an invoice has billed: what its payment covers before all else."""
    return {(row.day, row.unit_price) for row in connection.execute(_BILLED, {"invoice": invoice_id})}


def give(change: Change, invoice: Row) -> None:
    """Give the credits that a paid invoice billed, once; whoever calls holds the organization."""
    here = {"invoice": invoice["id"]}
    amount = int(change.connection.execute(_TO_GIVE, here).scalar_one())
    if amount <= 0 or change.connection.execute(_GIVEN, here).scalar_one():
        return
    organization_id = id_in(invoice, "organization_id")
    account = f"organization:{organization_id}"
    [write] = change.intend([account], "credits", {"amount": amount}, organization_id=organization_id)
    change.connection.execute(
        insert(credit_addition).values(
            organization_id=organization_id, credits_added=amount, category="paid", invoicing=POSTPAID,
            invoice_id=invoice["id"], remark=f"Used beyond the balance, paid with {invoice['number']}",
            added_by_id=acting(change.command.actor), timestamp=change.now, control_write_id=write,
        )
    )  # fmt: skip


def refuse_while_given(change: Change) -> None:
    """`Conflict` where the command's invoice gave its credits: owed again, they were given twice."""
    if change.connection.execute(_GIVEN, {"invoice": change.row_id}).scalar_one():
        raise Conflict("The credits it billed were given with its payment; write a credit note.")


def _move(connection: Connection, statement: object, organization_id: int, moved: Mapping[Lot, int]) -> None:
    if not moved:
        return
    lots: Iterable[tuple[date, Decimal, int]] = [(*lot, quantity) for lot, quantity in sorted(moved.items())]
    days, costs, quantities = (list(column) for column in zip(*lots, strict=True))
    here = {"organization": organization_id, "days": days, "costs": costs, "quantities": quantities}
    connection.execute(statement, here)  # type: ignore[call-overload]  # a statement of ours
