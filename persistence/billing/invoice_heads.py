"""Amounts of an invoice's head, in SQL: billed, paid, applied, and the rest."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from gateway.core.billing.money import MINOR_DIGITS, MINOR_DIGITS_USUAL
from persistence.entity import Entity, json_of
from persistence.tables import (
    invoice,
    invoice_line,
    note_application,
    payment,
)


# The query for invoices: with their lines, every amount in the decimals of its currency.
def _branch(digits: int) -> str:
    codes = " ".join(code for code, code_digits in MINOR_DIGITS.items() if code_digits == digits)
    return f"WHEN strpos('{codes}', {{currency}}) > 0 THEN {digits}"


# Literal SQL without parameters: the whole list would be a thousand parameters for an invoice, and the driver
# does not cache the parsing of such a long statement.
_DIGITS = " ".join(
    (
        "CASE",
        *map(_branch, sorted({*MINOR_DIGITS.values()} - {MINOR_DIGITS_USUAL})),
        f"ELSE {MINOR_DIGITS_USUAL} END",
    )
)


def money(amount: ColumnElement[Any], currency: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.round(amount, literal_column(_DIGITS.format(currency=currency)))


# Computed once for each invoice.
_minor = (
    select(literal_column(_DIGITS.format(currency=invoice.c.currency), Integer).label("digits"))
    .correlate(invoice)
    .lateral("minor")
)


def _round_amount(amount: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.round(amount, _minor.c.digits)


_of = invoice_line.c
_line = json_of(
    _of.position, _of.kind, _of.description, _of.service_id, _of.service, _of.tenant_id, _of.tenant,
    func.trim_scale(_of.quantity).label("quantity"), cast(_of.unit_price, Text).label("unit_price"),
    cast(_round_amount(_of.amount), Text).label("amount"), _of.corrects_position,
    cast(func.trim_scale(_of.tax_rate), Text).label("tax_rate"), _of.tax_category, _of.tax_reason,
    _of.period_start, _of.period_end,
)  # fmt: skip
_of_invoice = _of.invoice_id == invoice.c.id
_lines = (
    select(
        func.coalesce(func.jsonb_agg(aggregate_order_by(_line, _of.position)), literal_column("'[]'::jsonb"))
    )
    .where(_of_invoice)
    .scalar_subquery()
)


# Payments of an invoice; credit of notes that was applied to it; the amount still to pay. Of a note all three
# are negative: the money paid back, the applied credit, the open credit.
def _sum(amount: ColumnElement[Any], *where: ColumnElement[bool]) -> Any:
    # A short name: the driver remembers no longer statements.
    total = func.coalesce(func.sum(amount), 0).label("sum")
    return select(total).where(*where).correlate(invoice).scalar_subquery()


_tax = _sum(_of.amount, _of_invoice, _of.kind == "tax")
_applied = note_application.c
PAID = _sum(payment.c.amount, payment.c.invoice_id == invoice.c.id)
APPLIED = _sum(_applied.amount, _applied.invoice_id == invoice.c.id) - _sum(
    _applied.amount, _applied.note_id == invoice.c.id
)
REST = invoice.c.total_amount - PAID - APPLIED
# The credit applied when it was finalized, as its documents state.
_prepaid = _sum(
    _applied.amount, _applied.invoice_id == invoice.c.id, _applied.created_at == invoice.c.finalized_at
)
_is_final = invoice.c.status == "finalized"

_HEAD = select(
    *(column for column in invoice.c if column.name not in {"total_amount", "document", "used_up"}),
    *(invoice.c.document[name].label(name) for name in ("seller", "buyer", "accounting_tax")),
    *(
        func.coalesce(invoice.c.document[name], literal_column("'[]'::jsonb")).label(name)
        for name in ("notes", "corrects")
    ),
    invoice.c.document["iban"].astext.label("iban"),
    _round_amount(invoice.c.total_amount).label("total_amount"),
    _round_amount(invoice.c.total_amount - _tax).label("subtotal"),
    _round_amount(_tax).label("tax"),
    case((_is_final, _round_amount(PAID))).label("amount_paid"),
    case((_is_final, _round_amount(APPLIED))).label("amount_applied"),
    case((_is_final, _round_amount(REST))).label("amount_due"),
    case((invoice.c.finalized_at.is_not(None), _round_amount(_prepaid))).label("amount_prepaid"),
).select_from(invoice.join(_minor, true()))
SOURCE = _HEAD.add_columns(_lines.label("lines"))

# An invoice's lines after a position, in order, each as the invoice has it.
LINES = (
    select(_line.label("line"))
    .select_from(invoice_line.join(invoice, _of_invoice).join(_minor, true()))
    .where(invoice.c.id == bindparam("invoice"), _of.position > bindparam("after"))
    .order_by(_of.position)
    .limit(bindparam("rows"))
)

# Invoices for lists and pages, without their possibly thousands of lines; `LINES` reads some of those.
INVOICE_HEADS = Entity(invoice, source=_HEAD.add_columns(literal_column("'[]'::jsonb").label("lines")))


def rest_of(connection: Connection, invoice_id: int) -> Decimal:
    """Return the amount due of an invoice; of a credit note the open credit, as a negative amount."""
    rest: Decimal = connection.execute(select(REST).where(invoice.c.id == invoice_id)).scalar_one()
    return rest
