"""Allocates credit uses to the credit additions that pay for them, in the order of the account's movements.

One keeper at a time allocates an account. Allocations never change, except debt, which the next addition
covers. A correction of the balance itself is no use and is not allocated.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, insert
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.billing.allocation import Allocation, Allocator, CreditGrant, ExpiredGrant, Outflow, settled
from gateway.core.times import moment_of, ms_of
from persistence.entity import EntityWrite
from persistence.queries import query
from persistence.tables import credit_price

_PRICES = query("credit_balances.prices", "Select the prices of credits of an organization", """
SELECT since, unit_cost FROM credit_price WHERE organization_id = :organization ORDER BY since""")  # fmt: skip
_PRICED = query("credit_balances.priced", "Select organizations with prices of credits", """
SELECT DISTINCT organization_id FROM credit_price
 WHERE organization_id = ANY(cast(:organizations AS bigint[])) ORDER BY 1""")  # fmt: skip
# The oldest debt is covered first, so on one day billed debt before unbilled debt.
_COVER_DEBT = query("credit_balances.cover_debt", "Cover the oldest debt of credits", """
UPDATE credit_debt AS d SET open_quantity = d.open_quantity - n.quantity,
       quantity = d.billed_quantity + least(d.quantity - d.billed_quantity, d.open_quantity - n.quantity)
  FROM unnest(cast(:days AS date[]), cast(:costs AS numeric[]), cast(:quantities AS bigint[]))
    AS n (day, unit_cost, quantity)
 WHERE d.organization_id = :organization AND d.day = n.day AND d.unit_cost = n.unit_cost""")  # fmt: skip
_GROW = query("credit_balances.grow", "Add debt of credits", """
INSERT INTO credit_debt AS d (organization_id, day, unit_cost, open_quantity, quantity)
SELECT :organization, day, unit_cost, quantity, quantity
  FROM unnest(cast(:days AS date[]), cast(:costs AS numeric[]), cast(:quantities AS bigint[]))
    AS n (day, unit_cost, quantity) ORDER BY day, unit_cost
ON CONFLICT (organization_id, day, unit_cost) DO UPDATE SET
    open_quantity = d.open_quantity + excluded.open_quantity, quantity = d.quantity + excluded.quantity""")  # fmt: skip
_OF_INVOICE = """
  FROM (SELECT organization_id, (period_start AT TIME ZONE 'UTC')::date AS day, unit_price,
               sum(quantity) AS quantity
          FROM charge WHERE invoice_id = ANY(cast(:invoices AS bigint[])) AND source = 'credit_debt'
           AND reason NOT IN ('void', 'credited', 'credit_void') GROUP BY 1, 2, 3) AS n
 WHERE d.organization_id = n.organization_id AND d.day = n.day AND d.unit_cost = n.unit_price"""
_BILL = query("credit_balances.bill", "Store that debt of credits is billed", f"""
UPDATE credit_debt AS d SET billed_quantity = d.billed_quantity + n.quantity
{_OF_INVOICE}""")  # fmt: skip
_UNBILL = query("credit_balances.unbill", "Store that debt of credits is not billed", f"""
UPDATE credit_debt AS d SET billed_quantity = d.billed_quantity - n.quantity,
       quantity = d.billed_quantity - n.quantity
           + least(d.quantity - d.billed_quantity + n.quantity, d.open_quantity)
{_OF_INVOICE}""")  # fmt: skip
_BILLED = query("credit_balances.billed", "Select the days of billed debt of credits", """
SELECT DISTINCT (period_start AT TIME ZONE 'UTC')::date AS day, unit_price FROM charge
 WHERE invoice_id = :invoice AND source = 'credit_debt'
   AND reason NOT IN ('void', 'credited', 'credit_void')""")  # fmt: skip

# A day, and the price of a credit on that day.
Lot = tuple[date, Decimal]


@dataclass(frozen=True, slots=True)
class CreditPrices:
    """The prices of credits beyond the balance and the times they begin, oldest first; None is free."""

    since: Sequence[datetime]
    costs: Sequence[Decimal | None]

    def lot_of(self, used_at: datetime) -> Lot | None:
        """Return the day and price of credits used beyond the balance at a time; None if they are free."""
        place = bisect_right(self.since, used_at)
        cost = self.costs[place - 1] if place else None
        return None if cost is None else (used_at.astimezone(UTC).date(), cost)


def keep_debt_price(change: EntityWrite, row: Row) -> None:
    """Store the organization's new price of postpaid credits, if its row changes the price.

    Postpaid credits are those used beyond the balance.
    """
    before = None if change.before is None else change.before["credit_unit_cost"]
    cost = row["credit_unit_cost"]
    if cost != before:
        noted = insert(credit_price).values(organization_id=row["id"], since=change.now, unit_cost=cost)
        change.connection.execute(noted)


def bill_debt(connection: Connection, invoice_ids: Sequence[int]) -> None:
    connection.execute(_BILL, {"invoices": list(invoice_ids)})


def unbill_debt(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Mark postpaid credits (use beyond the balance) on voided invoices as unbilled again.

    Credits bought since that cover such use stay settled.
    """
    connection.execute(_UNBILL, {"invoices": list(invoice_ids)})


def _move(connection: Connection, statement: object, organization_id: int, moved: Mapping[Lot, int]) -> None:
    if not moved:
        return
    lots: Iterable[tuple[date, Decimal, int]] = [(*lot, quantity) for lot, quantity in sorted(moved.items())]
    days, costs, quantities = (list(column) for column in zip(*lots, strict=True))
    here = {"organization": organization_id, "days": days, "costs": costs, "quantities": quantities}
    connection.execute(statement, here)  # type: ignore[call-overload]  # a statement of ours


MOVEMENTS_A_PAGE = 20_000

# Advisory lock class 7802: allocation of one organization's credits.
_LOCK = query("credit_balances.lock", "Wait for allocations of an organization",
    "SELECT pg_advisory_xact_lock(7802, hashint8(:organization))")  # fmt: skip
BEHIND = query("credit_balances.behind", "Select organizations whose credits have new movements", """
SELECT id FROM organization WHERE credit_last_seq > allocated_seq ORDER BY id LIMIT :n""")  # fmt: skip
_CURSOR = query("credit_balances.cursor", "Select the last allocated movement",
    "SELECT allocated_seq, credit_last_seq FROM organization WHERE id = :organization")  # fmt: skip
_GRANTS = query("credit_balances.grants", "Select grants of credits with their rest", """
SELECT a.id, a.credits_added AS amount, a.priority, a.expires_at, a.category, a.spent
  FROM credit_addition AS a JOIN credit_posting AS p ON p.credit_addition_id = a.id AND p.kind = 'addition'
 WHERE p.organization_id = :organization AND p.seq <= :cursor AND a.credits_added > a.spent""")  # fmt: skip
_DEBTS = query("credit_balances.debts", "Select uncovered credits", """
SELECT seq, amount, day, unit_cost FROM credit_allocation
 WHERE organization_id = :organization AND credit_addition_id IS NULL ORDER BY seq""")  # fmt: skip
_MOVEMENTS = query("credit_balances.movements", "Select movements of credits to allocate", """
SELECT seq, "timestamp" AS at, -credits_used AS amount, NULL AS kind, NULL::bigint AS addition,
       NULL::bigint AS priority, NULL::timestamptz AS expires_at, NULL AS category, NULL::bigint AS invoice
  FROM credit_transaction WHERE organization_id = :organization AND seq > :cursor AND seq <= :until
UNION ALL
SELECT p.seq, p.created_at, p.amount, p.kind, p.credit_addition_id, a.priority, a.expires_at, a.category,
       CASE a.invoicing WHEN 'postpaid' THEN a.invoice_id END
  FROM credit_posting AS p LEFT JOIN credit_addition AS a ON a.id = p.credit_addition_id
 WHERE p.organization_id = :organization AND p.seq > :cursor AND p.seq <= :until
   AND p.kind <> 'correction'
 ORDER BY seq""")  # fmt: skip
_KEEP = query("credit_balances.keep", "Store allocations of credits", """
INSERT INTO credit_allocation (organization_id, seq, credit_addition_id, amount, day, unit_cost)
SELECT :organization, s, nullif(g, 0), n, d, c
  FROM unnest(cast(:seqs AS bigint[]), cast(:grants AS bigint[]), cast(:amounts AS bigint[]),
              cast(:days AS date[]), cast(:costs AS numeric[]))
    AS k (s, g, n, d, c)""")  # fmt: skip
_COVER = query("credit_balances.cover", "Store covered credits", """
WITH covered AS (
    UPDATE credit_allocation AS c SET amount = c.amount - k.n
      FROM unnest(cast(:seqs AS bigint[]), cast(:amounts AS bigint[])) AS k (s, n)
     WHERE c.organization_id = :organization AND c.credit_addition_id IS NULL
       AND c.seq = k.s AND c.amount > k.n
 RETURNING c.seq)
DELETE FROM credit_allocation AS c
 WHERE c.organization_id = :organization AND c.credit_addition_id IS NULL
   AND c.seq = ANY(cast(:seqs AS bigint[])) AND c.seq NOT IN (SELECT seq FROM covered)""")  # fmt: skip
# The covered debt that has a price.
_COVERED = query("credit_balances.covered", "Add up covered credits with a price", """
SELECT c.day, c.unit_cost, sum(k.n)::bigint AS amount FROM credit_allocation AS c
  JOIN unnest(cast(:seqs AS bigint[]), cast(:amounts AS bigint[])) AS k (s, n) ON k.s = c.seq
 WHERE c.organization_id = :organization AND c.credit_addition_id IS NULL AND c.unit_cost IS NOT NULL
 GROUP BY 1, 2""")  # fmt: skip
_SPENT = query("credit_balances.spent", "Store the use of grants", """
UPDATE credit_addition AS a SET spent = a.spent + k.n
  FROM unnest(cast(:grants AS bigint[]), cast(:amounts AS bigint[])) AS k (g, n) WHERE a.id = k.g""")  # fmt: skip
_MOVE = query("credit_balances.move", "Store the last allocated movement",
    "UPDATE organization SET allocated_seq = :until WHERE id = :organization")  # fmt: skip
EXPIRED = query("credit_balances.expired", "Select credits that have expired", """
SELECT a.id, a.organization_id FROM credit_addition AS a
 WHERE a.expires_at <= :now AND a.expiry_write_id IS NULL AND a.credits_added > 0
   AND EXISTS (SELECT FROM credit_posting AS p WHERE p.organization_id = a.organization_id
                  AND p.credit_addition_id = a.id)
 ORDER BY a.expires_at LIMIT :n""")  # fmt: skip
_REST = query("credit_balances.rest", "Select the rest of an expired grant", """
SELECT a.credits_added - a.spent AS rest, o.allocated_seq FROM credit_addition AS a
  JOIN organization AS o ON o.id = a.organization_id
 WHERE a.id = :addition AND a.expiry_write_id IS NULL""")  # fmt: skip
_INTEND = query("credit_balances.intend", "Add the control write of an expiry", """
INSERT INTO control_write (id, partition, account, verb, payload)
VALUES (:id, :partition, :account, 'credits', jsonb_build_object('amount', cast(:amount AS bigint)))""")  # fmt: skip
_EXPIRE = query("credit_balances.expire", "Store the control write of an expiry",
    "UPDATE credit_addition SET expiry_write_id = :id WHERE id = :addition")  # fmt: skip


class Allocations:
    """Allocates spent credits to additions, and expires additions."""

    def __init__(self, engine: AsyncEngine, *, movements_a_page: int = MOVEMENTS_A_PAGE) -> None:
        self._engine = engine
        self._movements_a_page = movements_a_page

    async def behind(self, count: int) -> Sequence[int]:
        """Return up to `count` ids of organizations with uses of credits not assigned to additions yet."""
        async with self._engine.connect() as connection:
            return list((await connection.execute(BEHIND, {"n": count})).scalars())

    async def allocate(self, organization_id: int) -> bool:
        """Assign a page of an account's uses of credits to the credit additions that pay for them.

        Return False if more uses are left.
        """
        async with self._engine.begin() as connection:
            await connection.execute(_LOCK, {"organization": organization_id})
            return await connection.run_sync(_allocate, organization_id, self._movements_a_page)

    async def expired(self, now_ms: int, count: int) -> Sequence[ExpiredGrant]:
        """Return up to `count` credit additions that have expired and whose rest has not been removed yet."""
        now = moment_of(now_ms)
        async with self._engine.connect() as connection:
            rows = await connection.execute(EXPIRED, {"now": now, "n": count})
            return [ExpiredGrant(row.id, row.organization_id) for row in rows]

    async def expire(self, expired: ExpiredGrant, partition: int, seq: int) -> bool:
        """Remove the rest of an expired credit addition from the balance, once, by a control write.

        `seq` is the account's last movement before the expiry. Return False if that movement has not been
        assigned to an addition yet: then try again later.
        """
        async with self._engine.begin() as connection:
            await connection.execute(_LOCK, {"organization": expired.organization_id})
            result = (await connection.execute(_REST, {"addition": expired.id})).first()
            if result is None:
                return True
            if result.allocated_seq < seq:
                return False
            write_id = uuid4()
            if result.rest > 0:
                account = f"organization:{expired.organization_id}"
                values = {"id": write_id, "partition": partition, "account": account, "amount": -result.rest}
                await connection.execute(_INTEND, values)
            await connection.execute(_EXPIRE, {"id": write_id, "addition": expired.id})
            return True


def catch_up_allocations(connection: Connection, organization_ids: Sequence[int]) -> None:
    """Assign all uses of credits to the credit additions that pay for them.

    This concerns organizations that pay for use beyond their balance. Other transactions wait until this one
    ends.
    """
    for organization_id in list(
        connection.execute(_PRICED, {"organizations": list(organization_ids)}).scalars()
    ):
        connection.execute(_LOCK, {"organization": organization_id})
        while not _allocate(connection, organization_id, MOVEMENTS_A_PAGE):
            pass


def allocate_late(connection: Connection, organization_id: int, seq: int) -> None:
    """Assign one movement of credits, stored late, to the addition that pays for it.

    Nothing is done if the regular pages of allocation have not reached the movement yet.
    """
    connection.execute(_LOCK, {"organization": organization_id})
    here: dict[str, Any] = {"organization": organization_id}
    cursor, _ = connection.execute(_CURSOR, here).one()
    if seq <= cursor:
        _bring_together(connection, {**here, "cursor": seq - 1, "until": seq}, {**here, "cursor": cursor})


def _allocate(connection: Connection, organization_id: int, count: int) -> bool:
    here: dict[str, Any] = {"organization": organization_id}
    cursor, last = connection.execute(_CURSOR, here).one()
    here |= {"cursor": cursor, "until": min(last, cursor + count)}
    _bring_together(connection, here, here)
    connection.execute(_MOVE, here)
    return bool(here["until"] == last)


def _bring_together(connection: Connection, page: dict[str, Any], given: dict[str, Any]) -> None:
    """Assign the movements in `page`, a range of sequence numbers, to credit additions.

    `given` limits the additions to those made up to a sequence number.
    """
    movements = connection.execute(_MOVEMENTS, page).all()
    own = {row.addition for row in movements if row.amount > 0}
    grants = [
        (_grant(row.id, row), row.amount - row.spent)
        for row in connection.execute(_GRANTS, given)
        if row.id not in own
    ]
    owed: Sequence[Any] = ()
    if any(row.amount > 0 for row in movements):
        owed = connection.execute(_DEBTS, page).all()
    rows = connection.execute(_PRICES, {"organization": page["organization"]}).all()
    prices = CreditPrices([row.since for row in rows], [row.unit_cost for row in rows])
    lots = {row.seq: lot for row in movements if row.amount < 0 and (lot := prices.lot_of(row.at))}
    billable = lots | {row.seq: (row.day, row.unit_cost) for row in owed if row.unit_cost is not None}
    allocator, found = Allocator.resume(grants, [(row.seq, row.amount) for row in owed]), []
    for row in movements:
        if row.amount > 0:
            # Credits added by the payment of an invoice cover the use that it billed.
            debts = connection.execute(_BILLED, {"invoice": row.invoice}) if row.invoice else ()
            billed = {(debt.day, debt.unit_price) for debt in debts}
            first = {seq for seq, lot in billable.items() if lot in billed}
            found += allocator.add_grant(_grant(row.addition, row), first)
        elif row.amount < 0:
            grant_id = row.addition if row.kind == "expiry" else None
            found += allocator.pay(Outflow(row.seq, ms_of(row.at), -row.amount, grant_id))
    _keep(connection, page, found, lots)


def _keep(
    connection: Connection, here: dict[str, Any], allocations: Sequence[Allocation], lots: Mapping[int, Lot]
) -> None:
    """Store which credit addition, or which debt, pays for each movement.

    `lots` are the day and the price of new debt, by sequence number.
    """
    sums, free = settled(allocations), (None, None)
    kept = [
        (seq, grant or 0, amount, *(free if grant else lots.get(seq, free)))
        for (seq, grant), amount in sums.items()
        if amount > 0
    ]
    covered = [(seq, -amount) for (seq, _), amount in sums.items() if amount < 0]
    spent: dict[int, int] = {}
    grown: dict[Lot, int] = {}
    for seq, grant, amount, *_ in kept:
        if grant:
            spent[grant] = spent.get(grant, 0) + amount
        elif seq in lots:
            grown[lots[seq]] = grown.get(lots[seq], 0) + amount
    organization = {"organization": here["organization"]}
    if covered:
        seqs, amounts = (list(column) for column in zip(*covered, strict=True))
        these = {**organization, "seqs": seqs, "amounts": amounts}
        priced = {(row.day, row.unit_cost): row.amount for row in connection.execute(_COVERED, these)}
        connection.execute(_COVER, these)
        _move(connection, _COVER_DEBT, here["organization"], priced)
    _move(connection, _GROW, here["organization"], grown)
    if kept:
        names = ("seqs", "grants", "amounts", "days", "costs")
        columns = (list(column) for column in zip(*kept, strict=True))
        connection.execute(_KEEP, organization | dict(zip(names, columns, strict=True)))
    if spent:
        connection.execute(_SPENT, {"grants": list(spent), "amounts": list(spent.values())})


def _grant(addition_id: int, row: Any) -> CreditGrant:
    expires_ms = None if row.expires_at is None else ms_of(row.expires_at)
    return CreditGrant(addition_id, row.amount, row.priority, expires_ms, row.category == "promotional")
