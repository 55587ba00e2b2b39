"""Invoices from charges: drafts show the charges that they would take, final ones never change, notes refund.

Finalizing locks out flushes of the organization's partition: all billable facts are charged, and the lines
consist of those charges. Numbers are assigned in the same transaction, so a year's numbers have no gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.charges import NOTHING, ONE_DAY, USAGE, left_out
from gateway.core.billing.document import CREDIT_NOTE, require_complete
from gateway.core.billing.payments import PAID
from gateway.errors import Conflict, Unprocessable
from persistence.billing import (
    charges,
    credit_grants,
    invoice_build,
    invoice_lines,
    payments,
    reratings,
    top_ups,
)
from persistence.billing.accounting_rates import read_rates
from persistence.billing.invoice_heads import SOURCE
from persistence.billing.invoice_lines import only_of
from persistence.billing.listeners import invoice_listeners
from persistence.entity import Entity, EntityWrite, day_in, id_in, require
from persistence.tables import invoice, invoice_line, organization

PERIOD_DAYS_MAX = 1_100


def create(change: EntityWrite) -> Row:
    """Create a draft for a period that no other draft overlaps and no invoice of the organization covers."""
    require(change)
    values = change.command.values
    missing = invoice_lines.one_off_misfits(values)
    if missing:
        raise Unprocessable(errors=missing)
    if values.get("source") is not None:
        return _create_one_off(change)
    organization_id = id_in(values, "organization_id")
    start, end = _period(values)
    if not 0 < (end - start).days <= PERIOD_DAYS_MAX:
        wanted = f"must be after period_start, by at most {PERIOD_DAYS_MAX} days"
        raise Unprocessable(errors=(("period_end", wanted),))
    _require_near(change, end)
    charges.hold(change.connection, organization_id)
    other = overlapping(change.connection, [organization_id], start, end).get(organization_id)
    if other is not None:
        raise Conflict(other)
    return _drafted(change, organization_id, (start, end))


def overlapping(
    connection: Connection, organization_ids: Sequence[int], start: date, end: date
) -> dict[int, str]:
    """Return, by organization, the message of a conflict with a draft for this period, if any."""
    here = invoice.c
    # Two drafts would show the same charges. A final invoice has its own: a month may lie within a year that
    # was billed in advance, or contain the day of a billed top-up.
    within = (here.period_start <= start) & (here.period_end >= end)
    around = (here.period_start >= start) & (here.period_end <= end)
    statement = select(here.id, here.organization_id, here.period_start, here.period_end).where(
        here.organization_id.in_(organization_ids), here.corrects_id.is_(None), here.status != "void",
        here.source.is_(None),
        here.period_start < end, here.period_end > start,
        (here.status == "draft") | (within == around),
    )  # fmt: skip
    return {
        row.organization_id: f"Invoice {row.id} has days of this period:"
        f" {row.period_start} to {row.period_end}."
        for row in connection.execute(statement.order_by(here.id.desc()))
    }


def _create_one_off(change: EntityWrite) -> Row:
    """Create a draft invoice for the current charges of one source, such as a top-up.

    Its period is that of the charges, and may overlap other invoices.
    """
    values = change.command.values
    organization_id = id_in(values, "organization_id")
    charges.hold(change.connection, organization_id)
    has_end = values.get("period_end") is not None
    until = day_in(values, "period_end") if has_end else change.today + ONE_DAY
    invoice_lines.refuse_second_draft(change, organization_id)
    _require_near(change, until)
    only = only_of(values)
    assert only is not None, "it is of a source"
    splits = invoice_build.of_source(change.connection, [organization_id], until, change.today, only)
    taken, left = splits.get(organization_id, NOTHING)
    if not taken:
        currency = select(organization.c.currency).where(organization.c.id == organization_id)
        why = left_out(left, str(change.connection.execute(currency).scalar_one()))
        raise Conflict(why or invoice_lines.NOTHING_OWED)
    start, ends = invoice_build.days_of(taken)
    return _drafted(change, organization_id, (start, max(ends, until) if has_end else ends))


def _require_near(change: EntityWrite, until: date) -> None:
    """Raise `Unprocessable` if a period's end, `until`, is far in the future: each day is a charge."""
    if (until - change.today).days > PERIOD_DAYS_MAX:
        raise Unprocessable(errors=(("period_end", f"must be within {PERIOD_DAYS_MAX} days from today"),))


def _drafted(change: EntityWrite, organization_id: int, period: tuple[date, date]) -> Row:
    """Create a draft for a period, with its lines; return its row."""
    currency = select(organization.c.currency).where(organization.c.id == organization_id).scalar_subquery()
    values = change.command.values
    made = insert(invoice).values(
        organization_id=organization_id, period_start=period[0], period_end=period[1], currency=currency,
        source=values.get("source"), source_id=values.get("source_id"),
    )  # fmt: skip
    invoice_id = int(change.connection.execute(made.returning(invoice.c.id)).scalar_one())
    draft = invoice_build.Draft(invoice_id, id_in(values, "organization_id"), *period, only_of(values))
    invoice_build.draw_draft(change.connection, change.letterhead, change.today, [draft])
    return change.fetch(invoice_id)


def recompute(change: EntityWrite) -> Row:
    row = _draft(change)
    if not _gathers(row):
        raise Conflict("A credit note has the lines of the invoice it gives back.")
    invoice_build.draw_draft(change.connection, change.letterhead, change.today, [_draft_of(row)])
    return change.fetch()


def finalize(change: EntityWrite) -> Row:
    """Assign a number to a draft and store its final lines; nothing changes the invoice afterwards."""
    row = _draft(change)
    connection, letterhead = change.connection, change.letterhead
    if _gathers(row):
        change.hold_flushes(change.partition_of(id_in(row, "organization_id")))
        drawn = invoice_build.take_charges(connection, letterhead, change.today, [_draft_of(row)])
        rates = read_rates(connection, letterhead, change.today)
        complete = invoice_build.require_final(connection, letterhead, change.today, rates, drawn[0])
        finals = invoice_build.have_draft(connection, [complete])
    else:
        finals = [_take_note(change, row)]
    invoice_build.finish_final(connection, letterhead, change.now, finals)
    _settle_corrected(change, row)
    payments.apply_open(change, id_in(row, "organization_id"), past_due=False)
    final = change.fetch()
    if final["payment_status"] in {None, PAID} and _gathers(row):
        credit_grants.give_credits(change, final)
    return final


def _take_note(change: EntityWrite, row: Row) -> invoice_build.Final:
    payments.give_back(change, id_in(row, "corrects_id"))
    charges.give_back(change.connection, [id_in(row, "organization_id")])
    lines: Any = row["lines"]
    said = [line["description"] for line in lines]
    require_complete(invoice_build.copy_document(change, row), said, change.letterhead.missing_glyphs)
    return invoice_build.Final(change.row_id, CREDIT_NOTE, Decimal(str(row["total_amount"])), None)


def bill_top_up(change: EntityWrite) -> Row:
    """Create and finalize the invoice of a credit addition; return the existing one if there is one."""
    addition_id = id_in(change.command.values, "source_id")
    organization_id = id_in(change.command.values, "organization_id")
    charges.hold(change.connection, organization_id)
    change.hold_flushes(change.partition_of(organization_id))
    made = top_ups.billed_by(change.connection, addition_id)
    if made is None:
        top_ups.charge(change.connection, addition_id)
        made = id_in(_create_one_off(change), "id")
        # Before it is final, as open credit may pay it at once, which releases the prepaid credits.
        top_ups.keep_invoice(change.connection, addition_id, made)
        change.command = replace(change.command, id=made)
        finalize(change)
    top_ups.keep_invoice(change.connection, addition_id, made)
    return change.fetch(made)


def correct(change: EntityWrite) -> Row:
    """Refund the amounts that invoices billed too much for calls that an amended price has rated again.

    A final credit note has it. What they billed too little is left to the next invoice, and so is all where no
    note can become final. Drafts are recomputed.
    """
    values, connection = change.command.values, change.connection
    organization_id = id_in(values, "organization_id")
    charges.hold(connection, organization_id)
    change.hold_flushes(change.partition_of(organization_id))
    here = invoice.c
    note_id = _give_back_use(change, organization_id)
    drafts = select(here.id).where(
        here.organization_id == organization_id, here.status == "draft", here.corrects_id.is_(None)
    )
    for draft_id in connection.execute(drafts.order_by(here.id)).scalars().all():
        change.command = replace(change.command, id=draft_id)
        recompute(change)
    reratings.forget_bill(connection, id_in(values, "price_id"), organization_id)
    return {"id": note_id or 0, "organization_id": organization_id}


def _give_back_use(change: EntityWrite, organization_id: int) -> int | None:
    """Return the id of a final credit note about use of days that invoices have; None if it is not due."""
    until = charges.billed_use_end(change.connection, organization_id)
    if until is None:
        return None
    charges.owe_noted(change.connection, organization_id, min(until, change.today), change.today)
    asked = {"organization_id": organization_id, "source": USAGE, "period_end": min(until, change.today)}
    before, note_id = change.command, None
    try:
        with change.connection.begin_nested() as trial:
            change.command = replace(before, values=asked)
            note = _create_one_off(change)
            if Decimal(str(note["total_amount"])) < 0:
                note_id = id_in(note, "id")
                change.command = replace(before, values=asked, id=note_id)
                finalize(change)
            else:
                trial.rollback()
    except (Conflict, Unprocessable):
        note_id = None
    change.command = before
    return note_id


def void(change: EntityWrite) -> Row:
    """Void a final invoice: its number is kept, and its charges are unbilled again."""
    row = payments.held(change)
    if row["status"] != "finalized":
        raise Conflict(f"The invoice is {row['status']}; only a finalized one can be made void.")
    payments.refuse_while_there(change, row)
    charges.refuse_noted(change.connection, change.row_id)
    for listener in invoice_listeners():
        payments.take_from_balance(change, listener.reference)
    payments.refuse_while_paid(change)
    top_ups.refuse_while_waiting(change)
    credit_grants.require_unused_invoice(change)
    made_void = {"status": "void", "voided_at": change.now, "payment_status": None}
    change.connection.execute(update(invoice).where(invoice.c.id == change.row_id).values(made_void))
    if _gathers(row):
        charges.void_charges(change.connection, change.row_id)
        invoice_lines.forget_credits(change.connection, change.row_id)
    else:
        charges.void_note_charges(change.connection, change.row_id)
        charges.give_back(change.connection, [id_in(row, "organization_id")])
    # Credit that it applied, or that was applied to it, is open again.
    touched = payments.take_back_credit(change, change.row_id) - {change.row_id}
    payments.apply_open(change, id_in(row, "organization_id"), also=touched)
    _settle_corrected(change, row)
    for listener in invoice_listeners():
        listener.void(change.connection, change.row_id)
    return change.fetch()


def draft_note(change: EntityWrite) -> Row:
    """Create a draft credit note for the rest of a final invoice, or for the requested lines."""
    row = payments.held(change)
    if row["status"] != "finalized" or row["kind"] != "invoice":
        raise Conflict("Only a finalized invoice can be given back.")
    note = change.fetch(payments.draft_credit_note(change, row))
    invoice_build.copy_document(change, note)
    return change.fetch(id_in(note, "id"))


def remove(change: EntityWrite) -> Row:
    """Delete a draft; a final invoice can only be voided."""
    row = _draft(change)
    change.connection.execute(delete(invoice_line).where(invoice_line.c.invoice_id == change.row_id))
    change.connection.execute(delete(invoice).where(invoice.c.id == change.row_id))
    return row


def _settle_corrected(change: EntityWrite, row: Row) -> None:
    if row["corrects_id"] is not None:
        payments.settle(change, id_in(row, "corrects_id"))


def _draft(change: EntityWrite) -> Row:
    row = payments.held(change)
    if row["status"] != "draft":
        raise Conflict(f"The invoice is {row['status']}, no longer a draft.")
    return row


def _gathers(row: Row) -> bool:
    """Return whether an invoice takes charges itself; a credit note uses those of the invoice it corrects."""
    return row["corrects_id"] is None


def _period(row: Row) -> tuple[date, date]:
    return day_in(row, "period_start"), day_in(row, "period_end")


def _draft_of(row: Row) -> invoice_build.Draft:
    return invoice_build.Draft(id_in(row, "id"), id_in(row, "organization_id"), *_period(row), only_of(row))


SUBJECT = Entity(
    invoice,
    source=SOURCE,
    verbs={
        "create": create,
        "recompute": recompute,
        "finalize": finalize,
        "void": void,
        "credit-note": draft_note,
        "payments": payments.record,
        "apply": payments.apply,
        "refund": payments.refund,
        "uncollectible": payments.give_up,
        "top-up": bill_top_up,
        "correct": correct,
        "delete": remove,
    },
    refers={"organization_id": organization},
)
