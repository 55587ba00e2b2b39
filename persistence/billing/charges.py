"""Facts that are owed for become charges, each once, in the transaction in which they become known.

`accrue` writes what is known of an organization and not charged yet, `open_charges` only reads it. What takes
a charge back is a row of its own: days a segment lost, an invoice made void, a credit note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.charge import Charge
from gateway.core.billing.subscription import Segment
from persistence.billing import allocations, commitments, early_uses, fee_charges
from persistence.billing.charge_facts import DEBTS, DUE_USES, OVERAGES, PURCHASES, USES, insert_of
from persistence.billing.fee_charges import NamedCharge
from persistence.billing.segments import segment_of
from persistence.refusals import statements_within

NOTHING_THAT_RUNS = datetime(1, 1, 2, tzinfo=UTC)
ALL_THAT_RUNS = datetime(9999, 12, 30, tzinfo=UTC)
# How long a statement may take that charges or invoices one organization, and many, who are then tried one by
# one. Meanwhile the flush of their partition waits.
STATEMENT_S_MAX, STATEMENT_OF_MANY_S_MAX = 10.0, 5.0

# Advisory lock class 7803: charges and invoices of one organization.
_LOCK = text("SELECT pg_advisory_xact_lock(7803, hashint8(:organization))")
_FREE = text("""
SELECT id FROM unnest(cast(:organizations AS bigint[])) AS id
 WHERE pg_try_advisory_xact_lock(7803, hashint8(id))""")
_TENANTS = text("SELECT id FROM tenant WHERE organization_id = ANY(cast(:organizations AS bigint[]))")
_OF = {
    # Of the cycle that runs nothing is charged before an invoice reaches what was used of it last. Named by
    # tenants, or the turns of everybody's plan were put in order.
    "overages": OVERAGES.format(
        which="o.tenant_id = ANY(cast(:tenants AS bigint[]))"
        " AND (o.next_seq IS NOT NULL OR o.ended < :running)"
    ),
    "purchases": PURCHASES.format(which="p.organization_id = ANY(cast(:organizations AS bigint[]))"),
    "uses": USES,
    "debts": DEBTS,
}
_READ = {name: text(select) for name, select in _OF.items()}
_WRITE = [text(insert_of(_OF["overages"])), text(insert_of(_OF["purchases"]))]
# The roll-ups say how much of them is charged: marked and charged by one statement.
_WRITE_USES = text(f"""
WITH due AS (
    SELECT t.tenant_id, t.day, t.service_id, t.unit_price
      FROM {DUE_USES} AS d JOIN usage_tier AS t USING (tenant_id, day, service_id, unit_price)
     ORDER BY t.tenant_id, t.day, t.service_id, t.unit_price FOR UPDATE OF t
), made AS ({insert_of(USES)}), told AS (
    UPDATE usage_told SET charged_quantity = quantity, charges = charges + 1
     WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity <> charged_quantity
), marked AS (
    UPDATE usage_tier AS u SET charged_quantity = u.quantity, charges = u.charges + 1 FROM due
     WHERE u.tenant_id = due.tenant_id AND u.day = due.day AND u.service_id = due.service_id
       AND u.unit_price = due.unit_price
)
SELECT count(*) FROM due""")  # noqa: S608  # our own words
# Whoever allocates debt is held off meanwhile.
_WRITE_DEBTS = text(f"""
WITH made AS ({insert_of(DEBTS)})
UPDATE credit_debt SET charged_quantity = quantity, charges = charges + 1
 WHERE organization_id = ANY(cast(:organizations AS bigint[]))
   AND quantity <> charged_quantity""")  # noqa: S608  # our own words
_UNBILLED = text("""
SELECT * FROM charge WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND invoice_id IS NULL
 ORDER BY id""")
_BILL = text("""
UPDATE charge AS c SET invoice_id = n.invoice_id, line = n.line
  FROM unnest(cast(:ids AS bigint[]), cast(:invoices AS bigint[]), cast(:lines AS integer[]))
    AS n (id, invoice_id, line)
 WHERE c.id = n.id AND c.invoice_id IS NULL""")


def hold(connection: Connection, organization_id: int) -> None:
    """Let nobody else charge or invoice an organization until the end of the transaction."""
    connection.execute(_LOCK, {"organization": organization_id})


def hold_free(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    """Hold those that nobody else charges or invoices now; answers which they are."""
    found = connection.execute(_FREE, {"organizations": sorted(organization_ids)})
    return sorted(found.scalars())


def accrue(
    connection: Connection,
    organization_ids: Sequence[int],
    until: date,
    *,
    today: date,
    running: datetime = NOTHING_THAT_RUNS,
) -> None:
    """Charge all that is known: fees of the days up to `until` (not included), and what was used.

    In advance, cycles that have begun today are charged whole. Tokens of a cycle that runs are charged
    where the last of them were used before `running`, and what is missing to a minimum once its cycle is
    over. The caller holds the organizations, then the flushes of their partitions. From now on a statement
    of the transaction is bounded: `TookTooLong`.
    """
    statements_within(connection, STATEMENT_OF_MANY_S_MAX if len(organization_ids) > 1 else STATEMENT_S_MAX)
    here = _here(connection, organization_ids, running)
    allocations.catch_up(connection, organization_ids)
    for statement in (*_WRITE, _WRITE_USES, _WRITE_DEBTS):
        connection.execute(statement, here)
    rows = fee_charges.rows_of(connection, organization_ids)
    _write_fees(connection, rows, until, today)
    give_back(connection, organization_ids)
    _accrue_early_uses(connection, organization_ids)
    fee_charges.add(connection, _missing(connection, rows, min(until, today), {}), "fact")


def segments(connection: Connection, organization_ids: Sequence[int]) -> dict[int, dict[int, Segment]]:
    """All segments of organizations, by whose they are, and by id."""
    found: dict[int, dict[int, Segment]] = {each: {} for each in organization_ids}
    for row in fee_charges.rows_of(connection, organization_ids):
        found[row.organization_id][row.id] = segment_of(row)
    return found


def accrue_told(connection: Connection, told: Mapping[int, early_uses.Told]) -> None:
    """Charge what is told of plans that ended, by organization and tenants: tokens beyond, or used ahead.

    The caller holds what `accrue` needs held.
    """
    connection.execute(_WRITE[0], _here(connection, list(told), NOTHING_THAT_RUNS))
    for organization_id in sorted(told):
        ends = early_uses.owed(connection, organization_id, told[organization_id])
        _settle_ends(connection, organization_id, ends)


def accrue_fees(connection: Connection, organization_id: int, today: date) -> None:
    """Charge the days of its segments that are over, or in advance begun, and give back those they lost."""
    hold(connection, organization_id)
    _write_fees(connection, fee_charges.rows_of(connection, [organization_id]), today, today)
    give_back(connection, [organization_id])


def accrue_moved(connection: Connection, organization_id: int, since: date) -> None:
    """Charge, or give back, what ends of plans come to by days and plans that are others since a day."""
    hold(connection, organization_id)
    _settle_ends(connection, organization_id, early_uses.moved(connection, organization_id, since))


def give_back(connection: Connection, organization_ids: Sequence[int]) -> None:
    """Bring days that segments lost to nothing, whatever was charged and given back of them."""
    fee_charges.add(connection, fee_charges.lost(connection, organization_ids), "returned")


def open_charges(
    connection: Connection, organization_ids: Sequence[int], until: date, *, today: date, running: datetime
) -> dict[int, list[Charge]]:
    """What `accrue` would write, by organization."""
    here = _here(connection, organization_ids, running)
    found = defaultdict[int, list[Charge]](list)
    for select in _READ.values():
        for row in connection.execute(select, here):
            found[row.organization_id].append(charge_of(row))
    rows = fee_charges.rows_of(connection, organization_ids)
    _, fees = fee_charges.fees(connection, _not_over(rows), until, today=today)
    for named in (*fees, *fee_charges.lost(connection, organization_ids)):
        found[named.organization_id].append(named.charge)
    for owner in early_uses.waiting(connection, organization_ids):
        found[owner] += [each.named[1] for each in early_uses.owed(connection, owner) if each.named]
    for named in _missing(connection, rows, min(until, today), found):
        found[named.organization_id].append(named.charge)
    return found


def unbilled(connection: Connection, organization_ids: Sequence[int]) -> dict[int, list[Charge]]:
    """The charges that no invoice has, by organization."""
    found = defaultdict[int, list[Charge]](list)
    for row in connection.execute(_UNBILLED, {"organizations": list(organization_ids)}):
        found[row.organization_id].append(charge_of(row))
    return found


def bill(connection: Connection, placed: Iterable[tuple[int, Charge, int | None]]) -> None:
    """Let invoices have charges, each on its line: an invoice, a charge, a line."""
    rows = [(charge.id, invoice_id, line) for invoice_id, charge, line in placed]
    if rows:
        ids, invoices, lines = (list(column) for column in zip(*rows, strict=True))
        connection.execute(_BILL, {"ids": ids, "invoices": invoices, "lines": lines})


def charge_of(row: Any) -> Charge:
    """A row of `charge`, or of what will be one."""
    return Charge(
        kind=row.kind, start=row.period_start, end=row.period_end, quantity=row.quantity,
        unit_price=row.unit_price, amount=row.amount, source=row.source, source_id=row.source_id,
        tenant_id=row.tenant_id, service_id=row.service_id, place=row.place, id=getattr(row, "id", 0),
    )  # fmt: skip


def _here(connection: Connection, organization_ids: Sequence[int], running: datetime) -> dict[str, Any]:
    ids = {"organizations": list(organization_ids)}
    return {**ids, "tenants": list(connection.execute(_TENANTS, ids).scalars()), "running": running}


def _write_fees(connection: Connection, segments: Iterable[Any], until: date, today: date) -> None:
    moved, fees = fee_charges.fees(connection, _not_over(segments), until, today=today)
    fee_charges.add(connection, fees, "fact")
    fee_charges.move(connection, moved)


def _accrue_early_uses(connection: Connection, organization_ids: Sequence[int]) -> None:
    """Charge what plans that ended owe for tokens, as far as it is known what was used."""
    for organization_id in early_uses.waiting(connection, organization_ids):
        while ends := early_uses.owed(connection, organization_id):
            _settle_ends(connection, organization_id, ends)


def _settle_ends(connection: Connection, organization_id: int, ends: Sequence[early_uses.Settled]) -> None:
    early_uses.settle(connection, ends)
    facts = [NamedCharge(organization_id, *each.named) for each in ends if each.named]
    fee_charges.add(connection, facts, "fact")


def _not_over(segments: Iterable[Any]) -> list[Any]:
    """Segments that may have days that are not charged."""
    return [row for row in segments if row.charged_until != row.end_date]


def _missing(
    connection: Connection, segments: Iterable[Any], until: date, more: Mapping[int, Sequence[Charge]]
) -> list[NamedCharge]:
    """What organizations that have agreed on a minimum miss of it; `more` is not written yet."""
    agreed = {row.organization_id for row in segments if row.minimum_commitment is not None}
    return [
        NamedCharge(organization_id, fact, charge)
        for organization_id in sorted(agreed)
        for fact, charge in commitments.missing(
            connection, organization_id, until, more.get(organization_id, ())
        )
    ]
