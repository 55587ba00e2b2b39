"""How an invoice is read: with its lines, every amount in the decimals of its currency."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, bindparam, case, cast, func, literal_column, select
from sqlalchemy.dialects.postgresql import aggregate_order_by

from gateway.core.billing.pricing import MINOR_DIGITS, MINOR_DIGITS_USUAL
from persistence.subject import Subject
from persistence.tables.billing import invoice, invoice_line

_digits = case(dict(MINOR_DIGITS), value=invoice.c.currency, else_=MINOR_DIGITS_USUAL)


def _paid(amount: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.round(amount, _digits)


_line = func.jsonb_build_object(
    "position", invoice_line.c.position,
    "kind", invoice_line.c.kind,
    "description", invoice_line.c.description,
    "service_id", invoice_line.c.service_id,
    "tenant_id", invoice_line.c.tenant_id,
    "quantity", func.trim_scale(invoice_line.c.quantity),
    "unit_price", cast(invoice_line.c.unit_price, Text),
    "amount", cast(_paid(invoice_line.c.amount), Text),
    "corrects_position", invoice_line.c.corrects_position,
)  # fmt: skip
_of_invoice = invoice_line.c.invoice_id == invoice.c.id
_lines = (
    select(
        func.coalesce(
            func.jsonb_agg(aggregate_order_by(_line, invoice_line.c.position)), literal_column("'[]'::jsonb")
        )
    )
    .where(_of_invoice)
    .scalar_subquery()
)
_tax = (
    select(func.coalesce(func.sum(invoice_line.c.amount), 0))
    .where(_of_invoice, invoice_line.c.kind == "tax")
    .scalar_subquery()
)

_HEAD = select(
    *(column for column in invoice.c if column.name != "total_amount"),
    _paid(invoice.c.total_amount).label("total_amount"),
    _paid(invoice.c.total_amount - _tax).label("subtotal"),
    _paid(_tax).label("tax"),
)
SOURCE = _HEAD.add_columns(_lines.label("lines"))

# An invoice's lines after a position, in order, each as the invoice has it.
LINES = (
    select(_line.label("line"))
    .select_from(invoice_line.join(invoice, _of_invoice))
    .where(invoice.c.id == bindparam("invoice"), invoice_line.c.position > bindparam("after"))
    .order_by(invoice_line.c.position)
    .limit(bindparam("rows"))
)

# Invoices as lists and pages show them: of thousands of lines, none; `LINES` reads some of them.
HEADS = Subject(invoice, source=_HEAD.add_columns(literal_column("'[]'::jsonb").label("lines")))
