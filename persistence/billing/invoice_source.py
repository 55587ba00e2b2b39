"""How an invoice is read: with its lines, every amount in the decimals of its currency."""

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

from gateway.core.billing.currencies import MINOR_DIGITS, MINOR_DIGITS_USUAL
from persistence.subject import Subject, json_of
from persistence.tables import invoice, invoice_line, note_application, payment


def _branch(digits: int) -> str:
    codes = " ".join(code for code, its in MINOR_DIGITS.items() if its == digits)
    return f"WHEN strpos('{codes}', {{currency}}) > 0 THEN {digits}"


# In words of its own, without parameters: of the whole list the driver would read a thousand for an invoice,
# and a statement that is longer than it remembers it takes apart each time.
_DIGITS = " ".join(
    (
        "CASE",
        *map(_branch, sorted({*MINOR_DIGITS.values()} - {MINOR_DIGITS_USUAL})),
        f"ELSE {MINOR_DIGITS_USUAL} END",
    )
)


def money(amount: ColumnElement[Any], currency: ColumnElement[Any]) -> ColumnElement[Any]:
    """An amount in the decimals of its currency."""
    return func.round(amount, literal_column(_DIGITS.format(currency=currency)))


# Of an invoice they are asked once.
_minor = (
    select(literal_column(_DIGITS.format(currency=invoice.c.currency), Integer).label("digits"))
    .correlate(invoice)
    .lateral("minor")
)


def _paid(amount: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.round(amount, _minor.c.digits)


_of = invoice_line.c
_line = json_of(
    _of.position, _of.kind, _of.description, _of.service_id, _of.service, _of.tenant_id, _of.tenant,
    func.trim_scale(_of.quantity).label("quantity"), cast(_of.unit_price, Text).label("unit_price"),
    cast(_paid(_of.amount), Text).label("amount"), _of.corrects_position,
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
_tax = select(func.coalesce(func.sum(_of.amount), 0)).where(_of_invoice, _of.kind == "tax").scalar_subquery()


# Money that came in for an invoice; credit of notes that was applied to it; what both leave to pay. Of a note
# all three are below zero: what was paid back, what of it was applied, its open credit.
def _sum(amount: ColumnElement[Any], *where: ColumnElement[bool]) -> Any:
    return select(func.coalesce(func.sum(amount), 0)).where(*where).correlate(invoice).scalar_subquery()


_applied = note_application.c
PAID = _sum(payment.c.amount, payment.c.invoice_id == invoice.c.id)
APPLIED = _sum(_applied.amount, _applied.invoice_id == invoice.c.id) - _sum(
    _applied.amount, _applied.note_id == invoice.c.id
)
REST = invoice.c.total_amount - PAID - APPLIED
# As it became final: what its documents say.
_prepaid = _sum(
    _applied.amount, _applied.invoice_id == invoice.c.id, _applied.created_at == invoice.c.finalized_at
)
_is_final = invoice.c.status == "finalized"

_HEAD = select(
    *(column for column in invoice.c if column.name not in {"total_amount", "document", "used_up"}),
    *(invoice.c.document[name].label(name) for name in ("seller", "buyer")),
    *(
        func.coalesce(invoice.c.document[name], literal_column("'[]'::jsonb")).label(name)
        for name in ("notes", "corrects")
    ),
    invoice.c.document["iban"].astext.label("iban"),
    _paid(invoice.c.total_amount).label("total_amount"),
    _paid(invoice.c.total_amount - _tax).label("subtotal"),
    _paid(_tax).label("tax"),
    case((_is_final, _paid(PAID))).label("amount_paid"),
    case((_is_final, _paid(APPLIED))).label("amount_applied"),
    case((_is_final, _paid(REST))).label("amount_due"),
    case((invoice.c.finalized_at.is_not(None), _paid(_prepaid))).label("amount_prepaid"),
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

# Invoices as lists and pages show them: of thousands of lines, none; `LINES` reads some of them.
HEADS = Subject(invoice, source=_HEAD.add_columns(literal_column("'[]'::jsonb").label("lines")))


def rest_of(connection: Connection, invoice_id: int) -> Decimal:
    """What payments and credit leave to pay of an invoice; of a note, below zero, its open credit."""
    rest: Decimal = connection.execute(select(REST).where(invoice.c.id == invoice_id)).scalar_one()
    return rest
