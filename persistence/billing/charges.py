"""Facts that are owed for become charges, each once, in the transaction in which they become known.

`accrue` writes what is known of an organization and not charged yet, `open_charges` only reads it. What takes
a charge back is a row of its own: days a segment lost, an invoice made void, a credit note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.charge import (
    FEE,
    Charge,
    charged_until,
    day_fees,
    fee_charge,
)
from gateway.core.billing.subscription import Segment
from persistence.billing import allocations, commitments, debts, early_uses
from persistence.billing.charge_facts import DEBTS, OVERAGES, PURCHASES, USES, insert_of
from persistence.billing.segments import segment_of

NOTHING_THAT_RUNS = datetime(1, 1, 2, tzinfo=UTC)
ALL_THAT_RUNS = datetime(9999, 12, 30, tzinfo=UTC)

# Advisory lock class 7803: charges and invoices of one organization.
_LOCK = text("SELECT pg_advisory_xact_lock(7803, hashint8(:organization))")
_OF = {
    # Of the cycle that runs nothing is charged before an invoice reaches what was used of it last.
    "overages": OVERAGES.format(
        which="o.organization_id = :organization AND (o.next_seq IS NOT NULL OR o.ended < :running)"
    ),
    "purchases": PURCHASES.format(which="p.organization_id = :organization"),
    "uses": USES,
    "debts": DEBTS,
}
_READ = {name: text(select) for name, select in _OF.items()}
_WRITE = [text(insert_of(_OF["overages"])), text(insert_of(_OF["purchases"]))]
# The roll-up says how much of it is charged: marked and charged by one statement.
_WRITE_USES = text(f"""
WITH due AS (
    SELECT tenant_id, day, service_id, unit_price FROM usage_tier
     WHERE organization_id = :organization AND quantity <> charged_quantity
     ORDER BY tenant_id, day, service_id, unit_price FOR UPDATE
), made AS ({insert_of(USES)}), marked AS (
    UPDATE usage_tier AS u SET charged_quantity = u.quantity, charges = u.charges + 1 FROM due
     WHERE u.tenant_id = due.tenant_id AND u.day = due.day AND u.service_id = due.service_id
       AND u.unit_price = due.unit_price
)
SELECT count(*) FROM due""")  # noqa: S608  # our own words
# Whoever allocates debt is held off meanwhile.
_WRITE_DEBTS = text(f"""
WITH made AS ({insert_of(DEBTS)})
UPDATE credit_debt SET charged_quantity = quantity, charges = charges + 1
 WHERE organization_id = :organization AND quantity <> charged_quantity""")  # noqa: S608  # our own words
_SEGMENTS = text("""
SELECT * FROM subscription_segment
 WHERE organization_id = :organization AND (charged_until IS NULL OR charged_until <> end_date)
 ORDER BY start_date, id""")
# What the days of a segment were charged from one on: net, and by facts alone.
_DAYS = text("""
SELECT kind, (period_start AT TIME ZONE 'UTC')::date AS day, count(*) AS rows,
       coalesce(sum(quantity) FILTER (WHERE reason NOT IN ('credited', 'credit_void')), 0) AS quantity,
       coalesce(sum(amount) FILTER (WHERE reason NOT IN ('credited', 'credit_void')), 0) AS amount
  FROM charge WHERE source = 'subscription_segment' AND source_id = :segment
   AND period_start >= cast(cast(:since AS date) AS timestamp) AT TIME ZONE 'UTC' GROUP BY 1, 2""")
# Days that a segment lost, and are charged to somebody or given back too often.
_LOST = text("""
SELECT c.source_id, c.kind, (c.period_start AT TIME ZONE 'UTC')::date AS day, count(*) AS rows,
       sum(c.quantity) AS quantity, sum(c.amount) AS amount
  FROM subscription_segment AS s
  JOIN charge AS c ON c.source = 'subscription_segment' AND c.source_id = s.id
   AND c.period_start >= cast(s.end_date AS timestamp) AT TIME ZONE 'UTC'
 WHERE s.organization_id = :organization
 GROUP BY 1, 2, 3 HAVING sum(c.quantity) <> 0 OR sum(c.amount) <> 0 ORDER BY 1, 2, 3""")
_ALL_SEGMENTS = text("SELECT * FROM subscription_segment WHERE organization_id = :organization")
_MOVE = text("UPDATE subscription_segment SET charged_until = :until WHERE id = :id")
_ADD = text("""
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, fact, tenant_id)
SELECT o.id, :kind, :start, :end, :quantity, :unit_price, :amount, o.currency, :source, :source_id, :reason,
       :fact, :tenant_id
  FROM organization AS o WHERE o.id = :organization
ON CONFLICT (fact) DO NOTHING""")
_UNBILLED = text(
    "SELECT * FROM charge WHERE organization_id = :organization AND invoice_id IS NULL ORDER BY id"
)
_BILL = text("""
UPDATE charge AS c SET invoice_id = :invoice, line = n.line
  FROM unnest(cast(:ids AS bigint[]), cast(:lines AS integer[])) AS n (id, line)
 WHERE c.id = n.id AND c.invoice_id IS NULL""")


def hold(connection: Connection, organization_id: int) -> None:
    """Let nobody else charge or invoice an organization until the end of the transaction."""
    connection.execute(_LOCK, {"organization": organization_id})


def accrue(
    connection: Connection,
    organization_id: int,
    until: date,
    *,
    today: date,
    running: datetime = NOTHING_THAT_RUNS,
) -> None:
    """Charge all that is known: fees of the days up to `until` (not included), and what was used.

    Tokens of a cycle that runs are charged where the last of them were used before `running`, and what is
    missing to a minimum once its cycle is over. The caller holds the organization, then the flushes of its
    partition.
    """
    here = {"organization": organization_id, "running": running}
    allocations.catch_up(connection, organization_id)
    for statement in (*_WRITE, _WRITE_USES, _WRITE_DEBTS):
        connection.execute(statement, here)
    accrue_fees(connection, organization_id, until)
    accrue_early_uses(connection, organization_id)
    missing = commitments.missing(connection, organization_id, min(until, today), ())
    _add(connection, organization_id, missing, "fact")


def segments(connection: Connection, organization_id: int) -> dict[int, Segment]:
    """All segments of an organization, by id."""
    found = connection.execute(_ALL_SEGMENTS, {"organization": organization_id})
    return {row.id: segment_of(row) for row in found}


def accrue_tokens(connection: Connection, organization_id: int) -> None:
    """Charge tokens beyond plans that ended; the caller holds what `accrue` needs held."""
    connection.execute(_WRITE[0], {"organization": organization_id, "running": NOTHING_THAT_RUNS})


def accrue_early_uses(connection: Connection, organization_id: int) -> None:
    """Charge what plans that ended owe for tokens, as far as it is known what was used."""
    while ends := early_uses.owed(connection, organization_id):
        for end_id, quantity, named in ends:
            early_uses.settle(connection, end_id, quantity, named and named[1])
        _add(connection, organization_id, [named for *_, named in ends if named], "fact")


def accrue_fees(connection: Connection, organization_id: int, until: date) -> None:
    """Charge the days of its segments up to `until` (not included), and give back those that they lost."""
    hold(connection, organization_id)
    for segment_id, upto, charges in _fees(connection, organization_id, until):
        _add(connection, organization_id, charges, "fact")
        connection.execute(_MOVE, {"id": segment_id, "until": upto})
    give_back(connection, organization_id)


def give_back(connection: Connection, organization_id: int) -> None:
    """Bring days that its segments lost to nothing, whatever was charged and given back of them."""
    _add(connection, organization_id, _lost(connection, organization_id), "returned")


def open_charges(
    connection: Connection, organization_id: int, until: date, *, today: date, running: datetime
) -> list[Charge]:
    """What `accrue` would write."""
    here = {"organization": organization_id, "running": running}
    found = [charge_of(row) for select in _READ.values() for row in connection.execute(select, here)]
    for _, _, charges in _fees(connection, organization_id, until):
        found += [charge for _, charge in charges]
    found += [charge for _, charge in _lost(connection, organization_id)]
    found += [named[1] for *_, named in early_uses.owed(connection, organization_id) if named]
    missing = commitments.missing(connection, organization_id, min(until, today), found)
    return found + [charge for _, charge in missing]


def unbilled(connection: Connection, organization_id: int) -> list[Charge]:
    """The charges that no invoice has."""
    return [charge_of(row) for row in connection.execute(_UNBILLED, {"organization": organization_id})]


def bill(connection: Connection, invoice_id: int, placed: Iterable[tuple[Charge, int | None]]) -> None:
    """Let an invoice have charges, each on its line."""
    rows = [(charge.id, line) for charge, line in placed]
    if rows:
        ids, lines = (list(column) for column in zip(*rows, strict=True))
        connection.execute(_BILL, {"invoice": invoice_id, "ids": ids, "lines": lines})
        debts.bill(connection, invoice_id)


def charge_of(row: Any) -> Charge:
    """A row of `charge`, or of what will be one."""
    return Charge(
        kind=row.kind, start=row.period_start, end=row.period_end, quantity=row.quantity,
        unit_price=row.unit_price, amount=row.amount, source=row.source, source_id=row.source_id,
        tenant_id=row.tenant_id, service_id=row.service_id, place=row.place, id=getattr(row, "id", 0),
    )  # fmt: skip


# What names a fact, and its charge.
Named = tuple[str, Charge]


def _fees(connection: Connection, organization_id: int, until: date) -> list[tuple[int, date, list[Named]]]:
    """Of each segment that has something: up to where it is charged then, and the days that are not yet."""
    found = []
    for row in connection.execute(_SEGMENTS, {"organization": organization_id}).all():
        segment, at = segment_of(row), row.charged_until or row.start_date
        upto = max(min(at, segment.end), charged_until(segment, until))
        days: list[Named] = []
        if upto > at:
            rows = connection.execute(_DAYS, {"segment": segment.id, "since": at})
            seen = {(day.kind, day.day): day for day in rows}
            for fee in day_fees(segment, at, upto):
                known = seen.get((fee.kind, fee.day))
                if known is None:
                    days.append((_fact(fee, 0), fee))
                elif known.quantity != 1:
                    rest = fee_charge(
                        fee.kind, segment.id, fee.day, 1 - known.quantity, fee.amount - known.amount
                    )
                    days.append((_fact(fee, known.rows), rest))
        if upto != row.charged_until and (upto > row.start_date or row.charged_until is not None):
            found.append((segment.id, upto, days))
    return found


def _lost(connection: Connection, organization_id: int) -> list[Named]:
    lost = [
        (fee_charge(row.kind, row.source_id, row.day, -row.quantity, -row.amount), row.rows)
        for row in connection.execute(_LOST, {"organization": organization_id})
    ]
    return [(_fact(charge, rows), charge) for charge, rows in lost]


def _fact(fee: Charge, number: int) -> str:
    what = "segment" if fee.kind == FEE else fee.kind
    return f"{what}:{fee.source_id}:{fee.day}:{number}"


def _add(connection: Connection, organization_id: int, charges: Sequence[Named], reason: str) -> None:
    rows = [
        {
            "organization": organization_id, "kind": each.kind, "start": each.start, "end": each.end,
            "quantity": each.quantity, "unit_price": each.unit_price, "amount": each.amount,
            "source": each.source, "source_id": each.source_id, "reason": reason, "fact": fact,
            "tenant_id": each.tenant_id,
        }
        for fact, each in charges
    ]  # fmt: skip
    if rows:
        connection.execute(_ADD, rows)
