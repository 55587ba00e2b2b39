"""Invoices: drafts that follow the facts, finalized ones that never change, notes that give back.

Finalizing happens while no flush of the organization's partition runs: what the lines count and
what is marked as billed are the same rows. Numbers are given out in the transaction that
finalizes, so a year's numbers have no gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from gateway.core.accounts.administration import Row
from gateway.core.billing.credit_note import partial_note, whole_note
from gateway.core.billing.invoice import Bill, Line, bill
from gateway.errors import Conflict, Unprocessable
from persistence.billing import invoice_facts
from persistence.billing.invoice_source import SOURCE
from persistence.keeper.notices import tell_invoice
from persistence.subject import Change, Subject, day_in, id_in, lock, require
from persistence.tables.billing import invoice, invoice_basis, invoice_line, invoice_sequence
from persistence.tables.people import organization

NUMBER_DIGITS = 6
PERIOD_DAYS_MAX = 1_100

# Advisory lock class 7803: invoices of one organization.
_LOCK = text("SELECT pg_advisory_xact_lock(7803, hashint8(:organization))")
_BILL_DAYS = text("""
WITH billed AS (
    SELECT tenant_id, day, service_id, credits - billed_credits AS credits FROM usage_daily
     WHERE organization_id = :organization AND day >= :since AND day < :until
       AND (usage_amount <> billed_usage_amount OR credits > billed_credits)
     ORDER BY tenant_id, day, service_id FOR UPDATE
), marked AS (
    UPDATE usage_daily AS u SET billed_usage_amount = u.usage_amount, billed_credits = u.credits
      FROM billed AS b WHERE u.tenant_id = b.tenant_id AND u.day = b.day AND u.service_id = b.service_id
), priced AS (
    SELECT tenant_id, day, service_id, unit_price, quantity - billed_quantity AS units FROM usage_tier
     WHERE organization_id = :organization AND day >= :since AND day < :until AND quantity <> billed_quantity
     ORDER BY tenant_id, day, service_id, unit_price FOR UPDATE
), marked_too AS (
    UPDATE usage_tier AS u SET billed_quantity = u.quantity FROM priced AS b
     WHERE u.tenant_id = b.tenant_id AND u.day = b.day AND u.service_id = b.service_id
       AND u.unit_price = b.unit_price
)
INSERT INTO invoice_basis (invoice_id, kind, quantity, tenant_id, day, service_id, unit_price)
SELECT :invoice, 'usage', units, tenant_id, day, nullif(service_id, 0), unit_price FROM priced
UNION ALL
SELECT :invoice, 'credits_consumed', credits, tenant_id, day, nullif(service_id, 0), NULL
  FROM billed WHERE credits > 0""")
_UNBILL_DAYS = text("""
WITH units AS (
    UPDATE usage_tier AS u SET billed_quantity = u.billed_quantity - b.quantity
      FROM invoice_basis AS b
     WHERE b.invoice_id = :invoice AND b.kind = 'usage' AND u.tenant_id = b.tenant_id AND u.day = b.day
       AND u.service_id = coalesce(b.service_id, 0) AND u.unit_price = b.unit_price
)
UPDATE usage_daily AS u
   SET billed_usage_amount = u.billed_usage_amount - b.units, billed_credits = u.billed_credits - b.credits
  FROM (SELECT tenant_id, day, coalesce(service_id, 0) AS service_id,
               coalesce(sum(quantity) FILTER (WHERE kind = 'usage'), 0) AS units,
               coalesce(sum(quantity) FILTER (WHERE kind = 'credits_consumed'), 0) AS credits
          FROM invoice_basis WHERE invoice_id = :invoice AND day IS NOT NULL GROUP BY 1, 2, 3) AS b
 WHERE u.tenant_id = b.tenant_id AND u.day = b.day AND u.service_id = b.service_id""")
_GIVEN = text("""
SELECT l.corrects_position AS position, -sum(l.amount) AS amount
  FROM invoice_line AS l JOIN invoice AS n ON n.id = l.invoice_id
 WHERE n.corrects_id = :id AND n.status <> 'void' GROUP BY 1""")
_COVERS = text("""
SELECT jsonb_build_object('since', cast(:since AS text), 'credits', o.credit_last_seq,
       'spend', o.spend_last_seq, 'tenants', coalesce((
           SELECT jsonb_object_agg(t.id, coalesce(q.last_seq, 0))
             FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
            WHERE t.organization_id = o.id), '{}'::jsonb))
  FROM organization AS o WHERE o.id = :organization""")


def create(change: Change) -> Row:
    """Make a draft of a period that no other invoice of the organization overlaps."""
    require(change)
    organization_id = id_in(change.command.values, "organization_id")
    start, end = _period(change.command.values)
    if not 0 < (end - start).days <= PERIOD_DAYS_MAX:
        wanted = f"must be after period_start, by at most {PERIOD_DAYS_MAX} days"
        raise Unprocessable(errors=(("period_end", wanted),))
    change.connection.execute(_LOCK, {"organization": organization_id})
    here = invoice.c
    overlapping = select(here.id, here.period_start, here.period_end).where(
        here.organization_id == organization_id, here.kind == "invoice", here.status != "void",
        here.period_start < end, here.period_end > start,
    )  # fmt: skip
    other = change.connection.execute(overlapping.limit(1)).first()
    if other is not None:
        raise Conflict(
            f"Invoice {other.id} has days of this period: {other.period_start} to {other.period_end}."
        )
    currency = select(organization.c.currency).where(organization.c.id == organization_id).scalar_subquery()
    made = insert(invoice).values(
        organization_id=organization_id, period_start=start, period_end=end, currency=currency
    )
    invoice_id = int(change.connection.execute(made.returning(invoice.c.id)).scalar_one())
    _compute(change, invoice_id, organization_id, (start, end))
    return change.fetch(invoice_id)


def recompute(change: Change) -> Row:
    """Make a draft's lines again from the facts as they are now."""
    row = _draft(change)
    if row["kind"] == "credit_note":
        raise Conflict("A credit note has the lines of the invoice it gives back.")
    _compute(change, change.row_id, id_in(row, "organization_id"), _period(row))
    return change.fetch()


def finalize(change: Change) -> Row:
    """Give a draft its number and its final lines: from now on nothing changes it."""
    row = _draft(change)
    organization_id = id_in(row, "organization_id")
    covers = None
    if row["kind"] == "invoice":
        change.hold_flushes(change.partition_of(organization_id))
        made, since = _compute(change, change.row_id, organization_id, _period(row))
        _keep_basis(change, organization_id, made, since, _period(row)[1])
        here = {"organization": organization_id, "since": since.isoformat()}
        covers = change.connection.execute(_COVERS, here).scalar_one()
    change.connection.execute(
        update(invoice)
        .where(invoice.c.id == change.row_id)
        .values(status="finalized", number=_number(change), finalized_at=change.now, covers=covers)
    )
    tell_invoice(change.connection, change.row_id)
    return change.fetch()


def void(change: Change) -> Row:
    """Take a finalized invoice back: its number stays, what it billed may be billed again."""
    row = _locked(change)
    if row["status"] != "finalized":
        raise Conflict(f"The invoice is {row['status']}; only a finalized one can be made void.")
    _refuse_while_credited(change, "finalized", "A credit note gives this invoice back already.")
    _refuse_while_credited(change, "draft", "There is a draft of a credit note for this invoice; delete it.")
    change.connection.execute(
        update(invoice).where(invoice.c.id == change.row_id).values(status="void", voided_at=change.now)
    )
    change.connection.execute(_UNBILL_DAYS, {"invoice": change.row_id})
    return change.fetch()


def give_back(change: Change) -> Row:
    """Make a draft of a credit note: over all that is left of a finalized invoice, or the lines asked for."""
    row = _locked(change)
    if row["status"] != "finalized" or row["kind"] != "invoice":
        raise Conflict("Only a finalized invoice can be given back.")
    kept = invoice_line.c
    lines = {
        each.position: Line(
            each.kind, each.description, int(each.quantity), each.unit_price, each.amount, each.service_id,
            each.tenant_id,
        )
        for each in change.connection.execute(
            select(invoice_line).where(kept.invoice_id == change.row_id).order_by(kept.position)
        )
    }  # fmt: skip
    given = {
        int(each.position): each.amount for each in change.connection.execute(_GIVEN, {"id": change.row_id})
    }
    asked = change.command.values.get("lines")
    if isinstance(asked, list):
        wanted = {line["position"]: line.get("amount") for line in asked}
        note = partial_note(lines, given, wanted, str(row["currency"]))
    else:
        note = whole_note(lines, given)
    same = ("organization_id", "currency", "period_start", "period_end", "customer")
    made = insert(invoice).values(
        kind="credit_note", corrects_id=change.row_id, **{name: row[name] for name in same}
    )
    note_id = int(change.connection.execute(made.returning(invoice.c.id)).scalar_one())
    _keep_lines(change, note_id, list(note.values()), list(note))
    return change.fetch(note_id)


def remove(change: Change) -> Row:
    """Delete a draft; a finalized invoice can only be made void."""
    row = _draft(change)
    change.connection.execute(delete(invoice_line).where(invoice_line.c.invoice_id == change.row_id))
    change.connection.execute(delete(invoice).where(invoice.c.id == change.row_id))
    return row


def _locked(change: Change) -> Row:
    row = lock(change)
    change.connection.execute(_LOCK, {"organization": row["organization_id"]})
    return row


def _draft(change: Change) -> Row:
    row = _locked(change)
    if row["status"] != "draft":
        raise Conflict(f"The invoice is {row['status']}, no longer a draft.")
    return row


def _period(row: Row) -> tuple[date, date]:
    return day_in(row, "period_start"), day_in(row, "period_end")


def _compute(
    change: Change, invoice_id: int, organization_id: int, period: tuple[date, date]
) -> tuple[Bill, date]:
    """Make the lines from the facts; answers them and the first day they reach back to."""
    facts, name = invoice_facts.read_facts(change.connection, organization_id, *period)
    made = bill(facts)
    change.connection.execute(delete(invoice_line).where(invoice_line.c.invoice_id == invoice_id))
    change.connection.execute(
        update(invoice).where(invoice.c.id == invoice_id).values(currency=facts.currency, customer=name)
    )
    _keep_lines(change, invoice_id, made.lines)
    return made, facts.since


def _keep_lines(
    change: Change, invoice_id: int, lines: Sequence[Line], corrects: Sequence[int | None] = ()
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "invoice_id": invoice_id, "position": position, "kind": line.kind,
            "description": line.description, "service_id": line.service_id or None,
            "tenant_id": line.tenant_id, "quantity": line.quantity, "unit_price": line.unit_price,
            "amount": line.amount, "corrects_position": corrected,
        }
        for position, (line, corrected) in enumerate(zip_longest(lines, corrects), 1)
    ]  # fmt: skip
    if rows:
        change.connection.execute(insert(invoice_line), rows)
    total = sum((line.amount for line in lines), Decimal(0))
    change.connection.execute(update(invoice).where(invoice.c.id == invoice_id).values(total_amount=total))


def _keep_basis(change: Change, organization_id: int, made: Bill, since: date, until: date) -> None:
    rows: list[dict[str, Any]] = [
        {
            "invoice_id": change.row_id, "kind": basis.kind, "quantity": basis.quantity,
            "segment_id": basis.segment_id, "start_date": basis.start, "end_date": basis.end,
            "tenant_id": basis.tenant_id, "cycle": basis.cycle, "credit_addition_id": basis.addition_id,
        }
        for basis in made.basis
    ]  # fmt: skip
    if rows:
        change.connection.execute(insert(invoice_basis), rows)
    here = {"organization": organization_id, "invoice": change.row_id, "since": since, "until": until}
    change.connection.execute(_BILL_DAYS, here)


def _number(change: Change) -> str:
    """Take the year's next number; others wait here until this transaction ends."""
    series = str(change.now.astimezone(UTC).year)
    first = upsert(invoice_sequence).values(series=series, last_number=1)
    taken = first.on_conflict_do_update(
        index_elements=["series"], set_={"last_number": invoice_sequence.c.last_number + 1}
    ).returning(invoice_sequence.c.last_number)
    return f"{series}-{change.connection.execute(taken).scalar_one():0{NUMBER_DIGITS}d}"


def _refuse_while_credited(change: Change, status: str, message: str) -> None:
    notes = select(func.count()).where(invoice.c.corrects_id == change.row_id, invoice.c.status == status)
    if change.connection.execute(notes).scalar_one():
        raise Conflict(message)


SUBJECT = Subject(
    invoice,
    source=SOURCE,
    verbs={
        "create": create,
        "recompute": recompute,
        "finalize": finalize,
        "void": void,
        "credit-note": give_back,
        "delete": remove,
    },
    refers={"organization_id": organization},
)
