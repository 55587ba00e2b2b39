"""Which additions paid for which uses, kept: pages of an account's movements in the order of their seq.

An account is allocated by one keeper at a time. What was allocated stays, except debt, which the
next addition covers. A correction of the balance itself is nobody's use and pays for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.billing.allocation import Allocation, Allocator, ExpiredGrant, Grant, Outflow, settled
from gateway.core.moments import moment_of, ms_of
from persistence.billing import debts
from persistence.billing.debts import Lot

MOVEMENTS_A_PAGE = 20_000

# Advisory lock class 7802: allocation of one organization's credits.
_LOCK = text("SELECT pg_advisory_xact_lock(7802, hashint8(:organization))")
_BEHIND = text("""
SELECT id FROM organization WHERE credit_last_seq > allocated_seq ORDER BY id LIMIT :n""")
_CURSOR = text("SELECT allocated_seq, credit_last_seq FROM organization WHERE id = :organization")
_GRANTS = text("""
SELECT a.id, a.credits_added AS amount, a.priority, a.expires_at, a.category, a.spent
  FROM credit_addition AS a JOIN credit_posting AS p ON p.credit_addition_id = a.id AND p.kind = 'addition'
 WHERE p.organization_id = :organization AND p.seq <= :cursor AND a.credits_added > a.spent""")
_DEBTS = text("""
SELECT seq, amount, day, unit_cost FROM credit_allocation
 WHERE organization_id = :organization AND credit_addition_id IS NULL ORDER BY seq""")
_MOVEMENTS = text("""
SELECT seq, "timestamp" AS at, -credits_used AS amount, NULL AS kind, NULL::bigint AS addition,
       NULL::bigint AS priority, NULL::timestamptz AS expires_at, NULL AS category, NULL::bigint AS invoice
  FROM credit_transaction WHERE organization_id = :organization AND seq > :cursor AND seq <= :until
UNION ALL
SELECT p.seq, p.created_at, p.amount, p.kind, p.credit_addition_id, a.priority, a.expires_at, a.category,
       CASE a.invoicing WHEN 'postpaid' THEN a.invoice_id END
  FROM credit_posting AS p LEFT JOIN credit_addition AS a ON a.id = p.credit_addition_id
 WHERE p.organization_id = :organization AND p.seq > :cursor AND p.seq <= :until
   AND p.kind <> 'correction'
 ORDER BY seq""")
_KEEP = text("""
INSERT INTO credit_allocation (organization_id, seq, credit_addition_id, amount, day, unit_cost)
SELECT :organization, s, nullif(g, 0), n, d, c
  FROM unnest(cast(:seqs AS bigint[]), cast(:grants AS bigint[]), cast(:amounts AS bigint[]),
              cast(:days AS date[]), cast(:costs AS numeric[]))
    AS k (s, g, n, d, c)""")
_COVER = text("""
WITH covered AS (
    UPDATE credit_allocation AS c SET amount = c.amount - k.n
      FROM unnest(cast(:seqs AS bigint[]), cast(:amounts AS bigint[])) AS k (s, n)
     WHERE c.organization_id = :organization AND c.credit_addition_id IS NULL
       AND c.seq = k.s AND c.amount > k.n
 RETURNING c.seq)
DELETE FROM credit_allocation AS c
 WHERE c.organization_id = :organization AND c.credit_addition_id IS NULL
   AND c.seq = ANY(cast(:seqs AS bigint[])) AND c.seq NOT IN (SELECT seq FROM covered)""")
# Which debt that costs something is covered.
_COVERED = text("""
SELECT c.day, c.unit_cost, sum(k.n)::bigint AS amount FROM credit_allocation AS c
  JOIN unnest(cast(:seqs AS bigint[]), cast(:amounts AS bigint[])) AS k (s, n) ON k.s = c.seq
 WHERE c.organization_id = :organization AND c.credit_addition_id IS NULL AND c.unit_cost IS NOT NULL
 GROUP BY 1, 2""")
_SPENT = text("""
UPDATE credit_addition AS a SET spent = a.spent + k.n
  FROM unnest(cast(:grants AS bigint[]), cast(:amounts AS bigint[])) AS k (g, n) WHERE a.id = k.g""")
_MOVE = text("UPDATE organization SET allocated_seq = :until WHERE id = :organization")
_EXPIRED = text("""
SELECT a.id, a.organization_id FROM credit_addition AS a
 WHERE a.expires_at <= :now AND a.expiry_write_id IS NULL AND a.credits_added > 0
   AND EXISTS (SELECT FROM credit_posting AS p WHERE p.organization_id = a.organization_id
                  AND p.credit_addition_id = a.id)
 ORDER BY a.expires_at LIMIT :n""")
_REST = text("""
SELECT a.credits_added - a.spent AS rest, o.allocated_seq FROM credit_addition AS a
  JOIN organization AS o ON o.id = a.organization_id
 WHERE a.id = :addition AND a.expiry_write_id IS NULL""")
_INTEND = text("""
INSERT INTO control_write (id, partition, account, verb, payload)
VALUES (:id, :partition, :account, 'credits', jsonb_build_object('amount', cast(:amount AS bigint)))""")
_EXPIRE = text("UPDATE credit_addition SET expiry_write_id = :id WHERE id = :addition")


class Allocations:
    """Credits paid and credits spent, brought together."""

    def __init__(self, engine: AsyncEngine, *, movements_a_page: int = MOVEMENTS_A_PAGE) -> None:
        self._engine = engine
        self._movements_a_page = movements_a_page

    async def behind(self, count: int) -> Sequence[int]:
        """Organizations with movements that are not allocated yet."""
        async with self._engine.connect() as connection:
            return list((await connection.execute(_BEHIND, {"n": count})).scalars())

    async def allocate(self, organization_id: int) -> bool:
        """Allocate one page of an account; False where there is more."""
        async with self._engine.begin() as connection:
            await connection.execute(_LOCK, {"organization": organization_id})
            return await connection.run_sync(_allocate, organization_id, self._movements_a_page)

    async def expired(self, now_ms: int, count: int) -> Sequence[ExpiredGrant]:
        """Additions whose expiry has come and is not taken yet."""
        now = moment_of(now_ms)
        async with self._engine.connect() as connection:
            rows = await connection.execute(_EXPIRED, {"now": now, "n": count})
            return [ExpiredGrant(row.id, row.organization_id) for row in rows]

    async def expire(self, expired: ExpiredGrant, partition: int, seq: int) -> bool:
        """Write the intent that takes what is left of an addition, once.

        `seq` is the account's last movement at a time after the expiry: False while it is not
        allocated.
        """
        async with self._engine.begin() as connection:
            await connection.execute(_LOCK, {"organization": expired.organization_id})
            found = (await connection.execute(_REST, {"addition": expired.id})).first()
            if found is None:
                return True
            if found.allocated_seq < seq:
                return False
            write_id = uuid4()
            if found.rest > 0:
                account = f"organization:{expired.organization_id}"
                values = {"id": write_id, "partition": partition, "account": account, "amount": -found.rest}
                await connection.execute(_INTEND, values)
            await connection.execute(_EXPIRE, {"id": write_id, "addition": expired.id})
            return True


def catch_up(connection: Connection, organization_ids: Sequence[int]) -> None:
    """Allocate all that is stored, where debt costs something; nobody else does until the commit."""
    for organization_id in debts.priced(connection, organization_ids):
        connection.execute(_LOCK, {"organization": organization_id})
        while not _allocate(connection, organization_id, MOVEMENTS_A_PAGE):
            pass


def allocate_late(connection: Connection, organization_id: int, seq: int) -> None:
    """Allocate a movement that is stored after those that follow it were allocated.

    One that is not reached yet comes with its page.
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
    """Allocate the movements of a page to what was given up to a seq."""
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
    prices = debts.prices(connection, page["organization"])
    lots = {row.seq: lot for row in movements if row.amount < 0 and (lot := prices.lot_of(row.at))}
    billable = lots | {row.seq: (row.day, row.unit_cost) for row in owed if row.unit_cost is not None}
    allocator, found = Allocator.resume(grants, [(row.seq, row.amount) for row in owed]), []
    for row in movements:
        if row.amount > 0:
            # What came with the payment of an invoice covers what that one billed.
            billed = debts.billed_by(connection, row.invoice) if row.invoice else ()
            first = {seq for seq, lot in billable.items() if lot in billed}
            found += allocator.add_grant(_grant(row.addition, row), first)
        elif row.amount < 0:
            grant_id = row.addition if row.kind == "expiry" else None
            found += allocator.pay(Outflow(row.seq, ms_of(row.at), -row.amount, grant_id))
    _keep(connection, page, found, lots)


def _keep(
    connection: Connection, here: dict[str, Any], found: Sequence[Allocation], lots: Mapping[int, Lot]
) -> None:
    """Keep who paid for what; `lots` are those of new debt that costs something."""
    sums, free = settled(found), (None, None)
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
        debts.cover(connection, here["organization"], priced)
    debts.grow(connection, here["organization"], grown)
    if kept:
        names = ("seqs", "grants", "amounts", "days", "costs")
        columns = (list(column) for column in zip(*kept, strict=True))
        connection.execute(_KEEP, organization | dict(zip(names, columns, strict=True)))
    if spent:
        connection.execute(_SPENT, {"grants": list(spent), "amounts": list(spent.values())})


def _grant(addition_id: int, row: Any) -> Grant:
    expires_ms = None if row.expires_at is None else ms_of(row.expires_at)
    return Grant(addition_id, row.amount, row.priority, expires_ms, row.category == "promotional")
