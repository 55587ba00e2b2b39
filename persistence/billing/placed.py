"""The charges of an invoice, each with its line: of a final one as stored, of a draft as they would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.bounds import borne
from gateway.core.billing.charge import Charge, gathered
from gateway.core.billing.invoice import bill
from gateway.core.billing.subscription import midnight
from persistence.billing import charges, invoice_facts
from persistence.billing.one_off import only_of

# What was taken back by making it void was on it all the same.
_BILLED = text("""
SELECT * FROM charge WHERE invoice_id = :invoice AND reason NOT IN ('void', 'credit_void')
 ORDER BY line, id""")
_LINES = text("""
SELECT position, kind, description, amount, tenant_id, service_id FROM invoice_line
 WHERE invoice_id = :invoice ORDER BY position""")


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """A line as it is charged for."""

    position: int
    kind: str
    description: str
    amount: Decimal
    tenant_id: int | None
    service_id: int | None


@dataclass(frozen=True, slots=True)
class Placed:
    """Lines in their order, and charges with the position of theirs; None where they came to nothing."""

    lines: Sequence[PlacedLine]
    charges: Sequence[tuple[Charge, int | None]]


def known(
    connection: Connection, organization_ids: Sequence[int], until: date, today: date
) -> dict[int, list[Charge]]:
    """What is owed and no invoice has, written or not, by organization; up to a day that may be to come."""
    found, running = charges.unbilled(connection, organization_ids), midnight(until)
    open_ = charges.open_charges(connection, organization_ids, until, today=today, running=running)
    for owner, more in open_.items():
        found[owner] += more
    return found


def placed(connection: Connection, invoice: Any, today: date) -> Placed:
    """What an invoice has, or a draft would take today; `invoice` is its row."""
    if invoice.status == "draft" and invoice.corrects_id is None:
        return _drawn(connection, invoice, today)
    here = {"invoice": invoice.id}
    lines = [PlacedLine(*row) for row in connection.execute(_LINES, here)]
    return Placed(lines, [(charges.charge_of(row), row.line) for row in connection.execute(_BILLED, here)])


def _drawn(connection: Connection, invoice: Any, today: date) -> Placed:
    organization_id, start, until = invoice.organization_id, invoice.period_start, invoice.period_end
    only = only_of({"source": invoice.source, "source_id": invoice.source_id})
    open_ = known(connection, [organization_id], until, today)[organization_id]
    taken = borne(
        gathered(open_, until, charges.segments(connection, [organization_id])[organization_id], only)
    ).taken
    wanted = invoice_facts.Gathered(organization_id, start, until, taken)
    facts = invoice_facts.read_facts(connection, [wanted])[organization_id].facts
    made = bill(facts if only is None else replace(facts, credits_consumed=0))
    lines = [
        PlacedLine(
            position, each.kind, each.description, each.amount, each.tenant_id, each.service_id or None
        )
        for position, each in enumerate(made.lines, 1)
    ]
    return Placed(lines, made.placed)
