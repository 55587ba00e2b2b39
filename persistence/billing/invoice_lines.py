"""The lines of invoices as they are stored, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import dialect

from gateway.core.billing.invoice import Line
from gateway.core.billing.tax import Tax
from persistence.billing.tax_rates import tax_of
from persistence.subject import Change
from persistence.tables import invoice_line

# What is stored of a line, by columns of its table.
_NAMES = (
    "invoice_id", "position", "kind", "description", "service_id", "tenant_id", "quantity", "unit_price",
    "amount", "exact", "basis", "corrects_position", "period_start", "period_end", "tax_rate",
    "tax_category", "tax_reason",
)  # fmt: skip
_DIALECT = dialect()  # type: ignore[no-untyped-call]  # as the library has it
_ARRAYS = ", ".join(f"cast(:{name} AS {invoice_line.c[name].type.compile(_DIALECT)}[])" for name in _NAMES)
# With what tenant and service are called now.
_KEEP = text(f"""
INSERT INTO invoice_line ({", ".join(_NAMES)}, tenant, service)
SELECT {", ".join(f"n.{name}" for name in _NAMES)}, t.name, s.name
  FROM unnest({_ARRAYS}) WITH ORDINALITY AS n ({", ".join(_NAMES)}, place)
  LEFT JOIN tenant AS t ON t.id = n.tenant_id LEFT JOIN service AS s ON s.id = n.service_id
 ORDER BY n.place""")  # noqa: S608  # our own words


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
    connection: Connection, of: Mapping[int, Sequence[Line]], corrects: Sequence[int | None] = ()
) -> dict[int, Decimal]:
    """Store lines of invoices; of a note each with the position of the line it gives back.

    Answers what those of each invoice come to.
    """
    rows: list[dict[str, Any]] = [
        {
            "invoice_id": invoice_id, "position": position, "kind": line.kind,
            "description": line.description, "service_id": line.service_id or None,
            "tenant_id": line.tenant_id, "quantity": line.quantity, "unit_price": line.unit_price,
            "amount": line.amount, "exact": line.exact, "basis": line.basis,
            "corrects_position": corrected, "period_start": line.start, "period_end": line.end,
            **_taxed(line.tax),
        }
        for invoice_id, lines in of.items()
        for position, (line, corrected) in enumerate(zip_longest(lines, corrects), 1)
    ]  # fmt: skip
    if rows:
        connection.execute(_KEEP, {name: [row[name] for row in rows] for name in _NAMES})
    return {invoice_id: sum((line.amount for line in lines), Decimal(0)) for invoice_id, lines in of.items()}


def _taxed(tax: Tax | None) -> dict[str, Any]:
    if tax is None:
        return {"tax_rate": None, "tax_category": None, "tax_reason": None}
    return {"tax_rate": tax.rate, "tax_category": tax.category, "tax_reason": tax.reason}
