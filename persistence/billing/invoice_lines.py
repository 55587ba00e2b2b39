"""The lines of an invoice as they are stored, and its total with them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from sqlalchemy import insert, select, text, update

from gateway.core.billing.invoice import Line
from gateway.core.billing.tax import Tax
from persistence.billing.tax_rates import tax_of
from persistence.subject import Change
from persistence.tables.billing import invoice, invoice_line

_NAME = text("""
UPDATE invoice_line AS l SET tenant = (SELECT name FROM tenant WHERE id = l.tenant_id),
       service = (SELECT name FROM service WHERE id = l.service_id)
 WHERE l.invoice_id = :invoice AND (l.tenant_id IS NOT NULL OR l.service_id IS NOT NULL)""")


def lines_of(change: Change, invoice_id: int) -> Sequence[Any]:
    """The lines of an invoice, in order."""
    kept = invoice_line.c
    found = select(invoice_line).where(kept.invoice_id == invoice_id).order_by(kept.position)
    return change.connection.execute(found).all()


def line_of(row: Any) -> Line:
    """A line as it was stored; it has no tax where that was not stored with it."""
    tax = None if row.tax_rate is None else tax_of(row.tax_rate, row.tax_category, row.tax_reason)
    return Line(
        row.kind, row.description, int(row.quantity), row.unit_price, row.amount, row.service_id,
        row.tenant_id, row.basis, tax=tax, start=row.period_start, end=row.period_end,
    )  # fmt: skip


def keep_lines(
    change: Change, invoice_id: int, lines: Sequence[Line], corrects: Sequence[int | None] = ()
) -> Decimal:
    """Store lines; of a note each with the position of the line it gives back. Answers what they come to."""
    rows: list[dict[str, Any]] = [
        {
            "invoice_id": invoice_id, "position": position, "kind": line.kind,
            "description": line.description, "service_id": line.service_id or None,
            "tenant_id": line.tenant_id, "quantity": line.quantity, "unit_price": line.unit_price,
            "amount": line.amount, "exact": line.exact, "basis": line.basis,
            "corrects_position": corrected, "period_start": line.start, "period_end": line.end,
            **_taxed(line.tax),
        }
        for position, (line, corrected) in enumerate(zip_longest(lines, corrects), 1)
    ]  # fmt: skip
    if rows:
        change.connection.execute(insert(invoice_line), rows)
        change.connection.execute(_NAME, {"invoice": invoice_id})
    total = sum((line.amount for line in lines), Decimal(0))
    change.connection.execute(update(invoice).where(invoice.c.id == invoice_id).values(total_amount=total))
    return total


def _taxed(tax: Tax | None) -> dict[str, Any]:
    if tax is None:
        return {"tax_rate": None, "tax_category": None, "tax_reason": None}
    return {"tax_rate": tax.rate, "tax_category": tax.category, "tax_reason": tax.reason}
