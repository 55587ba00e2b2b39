"""Invoices from charges: the lines of drafts, and finalizing, for one organization or many.

The caller has locked the organizations and, to finalize, the flushes of their partitions. Invoice numbers
block other transactions, so they are assigned last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    select,
    update,
)

from gateway.core.accounts.administration import Row
from gateway.core.billing.charges import (
    DEBT,
    NOTHING,
    ONE_DAY,
    ChargeSelection,
    ChargeSplit,
    SupplyCharge,
    gather_charges,
    left_out,
    split_at_maxima,
)
from gateway.core.billing.document import (
    CORRECTED_MAX,
    CREDIT_NOTE,
    INVOICE,
    Document,
    InvoiceReference,
    Letterhead,
    party_of,
    require_complete,
)
from gateway.core.billing.invoice import Bill, bill
from gateway.core.billing.payments import OpenInvoice, due_on
from gateway.core.billing.subscription import midnight
from gateway.errors import Unprocessable
from persistence.billing import charges, credit_balances, invoice_lines
from persistence.billing.accounting_rates import Rates, convert_tax, tax_of_note
from persistence.billing.invoice_lines import (
    InvoiceCharges,
    InvoiceInputs,
    keep_lines,
    read_facts,
    read_unbilled,
)
from persistence.billing.invoice_numbers import next_numbers
from persistence.billing.listeners import invoice_listeners
from persistence.entity import EntityWrite
from persistence.keeper.news import tell_invoices
from persistence.queries import query
from persistence.tables import (
    invoice,
    organization,
)

# Data copied into an invoice besides its lines: seller, buyer, terms, and the invoices that it corrects.

_CORRECTED = query("invoice_build.corrected", "Select a corrected invoice",
    "SELECT number, finalized_at FROM invoice WHERE id = :id")  # fmt: skip
# The invoices that billed the supplies that this one refunds: the same supply, or the latest of the kind.
# Both are found by sorting the organization's charges of these kinds, not by comparing all pairs.
_GIVEN_BACK = query("invoice_build.given_back", "Select the invoices that a note corrects", """
WITH charged AS (
    SELECT c.kind, i.number, i.finalized_at, c.invoice_id = :id AS back,
           bool_or(c.invoice_id = :id) OVER (PARTITION BY c.kind, c.source, c.source_id, c.tenant_id,
                                                          c.service_id, c.period_start) AS same
      FROM invoice AS n JOIN invoice AS i ON i.organization_id = n.organization_id
      JOIN charge AS c ON c.invoice_id = i.id
     WHERE n.id = :id AND c.kind IN (SELECT kind FROM charge WHERE invoice_id = :id AND amount < 0)
       AND CASE WHEN i.id = :id THEN c.amount < 0
                ELSE c.amount > 0 AND i.status = 'finalized' AND i.kind = 'invoice' END
), billed AS (
    SELECT kind, number, finalized_at, bool_or(same) AS same FROM charged WHERE NOT back GROUP BY 1, 2, 3
), of_kind AS (
    SELECT kind, bool_or(same) AS same, max(finalized_at) AS latest FROM billed GROUP BY 1
)
SELECT DISTINCT b.number, b.finalized_at FROM billed AS b JOIN of_kind AS k ON k.kind = b.kind
 WHERE b.same OR (NOT k.same AND b.finalized_at = k.latest)
 ORDER BY b.finalized_at, b.number LIMIT :most""")  # fmt: skip


def document_of(
    letterhead: Letterhead, organization: Any, corrects: Sequence[InvoiceReference] = ()
) -> Document:
    buyer = party_of(organization.name, organization._asdict())
    return Document(
        letterhead.seller, letterhead.buyer(organization.id, buyer), letterhead.notes,
        corrects=tuple(corrects), iban=letterhead.iban,
    )  # fmt: skip


def copy_document(change: EntityWrite, row: Row) -> Document:
    """Copy today's data of the seller and the customer into a credit note; return the copy.

    The note's tax is converted by the rate of the invoice that it corrects. Its due date is not copied.
    """
    columns = organization.c
    parts = (
        columns.address,
        columns.country,
        columns.tax_number,
        columns.contact,
        columns.buyer_reference,
        columns.endpoint_id,
    )
    statement = select(columns.id, columns.name, *parts)
    known = change.connection.execute(statement.where(columns.id == row["organization_id"])).one()
    corrected = corrected_by(change.connection, row)
    copied = replace(
        document_of(change.letterhead, known, corrected),
        accounting_tax=tax_of_note(change.connection, corrected, Decimal(str(row["tax"]))),
    )
    change.connection.execute(
        update(invoice)
        .where(invoice.c.id == row["id"])
        .values(document=copied.as_json(), customer=known.name)
    )
    return copied


def corrected_by(connection: Connection, row: Row) -> Sequence[InvoiceReference]:
    """Return references to the invoices that a note corrects."""
    if row["corrects_id"] is not None:
        result = connection.execute(_CORRECTED, {"id": row["corrects_id"]})
    else:
        result = connection.execute(_GIVEN_BACK, {"id": row["id"], "most": CORRECTED_MAX})
    return [
        InvoiceReference(corrected.number, corrected.finalized_at.astimezone(UTC).date().isoformat())
        for corrected in result
    ]


_CLEAR = query("invoice_build.clear", "Delete the lines of drafts",
    "DELETE FROM invoice_line WHERE invoice_id = ANY(cast(:ids AS bigint[]))")  # fmt: skip
_KEEP = query("invoice_build.keep", "Store totals of drafts", """
UPDATE invoice AS i SET total_amount = n.total, kind = n.kind, currency = n.currency, customer = n.customer,
       document = n.document
  FROM unnest(cast(:ids AS bigint[]), cast(:totals AS numeric[]), cast(:kinds AS text[]),
              cast(:currencies AS text[]), cast(:customers AS text[]), cast(:documents AS jsonb[]))
    AS n (id, total, kind, currency, customer, document) WHERE i.id = n.id""")  # fmt: skip
_DOCUMENTS = query("invoice_build.documents", "Store the documents of invoices", """
UPDATE invoice AS i SET document = n.document
  FROM unnest(cast(:ids AS bigint[]), cast(:documents AS jsonb[])) AS n (id, document) WHERE i.id = n.id""")  # fmt: skip
_FINAL = query("invoice_build.final", "Make invoices final", """
UPDATE invoice AS i SET status = 'finalized', number = n.number, finalized_at = :now, covers = n.covers,
       due_date = n.due_date, payment_status = n.payment_status
  FROM unnest(cast(:ids AS bigint[]), cast(:numbers AS text[]), cast(:covers AS jsonb[]),
              cast(:due_dates AS date[]), cast(:statuses AS text[]))
    AS n (id, number, covers, due_date, payment_status) WHERE i.id = n.id""")  # fmt: skip


class Draft(NamedTuple):
    """An invoice without a number: organization, days (`until` excluded), and source if it has only one."""

    invoice_id: int
    organization_id: int
    start: date
    until: date
    only: ChargeSelection | None = None


class DraftWithLines(NamedTuple):
    draft: Draft
    bill: Bill
    total: Decimal
    kind: str
    document: Document
    known: InvoiceInputs
    # Why some charges are not on it; "" if all are.
    left: str = ""


class Final(NamedTuple):
    invoice_id: int
    kind: str
    total: Decimal
    due_days: int | None
    covers: Row | None = None


def of_source(
    connection: Connection, organization_ids: Sequence[int], until: date, today: date, only: ChargeSelection
) -> dict[int, ChargeSplit]:
    """Return the unbilled charges of the source `only`, such as one top-up, by organization.

    Organizations without such charges are left out.
    """
    ids = list(organization_ids)
    credit_balances.catch_up_allocations(connection, ids)
    taken = _split_charges(connection, read_unbilled(connection, ids, until, today), until, only)
    return {owner: some for owner, some in taken.items() if some.taken or some.left}


def days_of(taken: Sequence[SupplyCharge]) -> tuple[date, date]:
    """Return the first day of an invoice's charges, and the day after the last one."""
    ends = max((charge.end - ONE_DAY).astimezone(UTC).date() for charge in taken) + ONE_DAY
    return min(charge.day for charge in taken), ends


def draw_draft(
    connection: Connection, letterhead: Letterhead, today: date, drafts: Sequence[Draft]
) -> list[DraftWithLines]:
    ids, until, only = _alike(drafts)
    credit_balances.catch_up_allocations(connection, ids)
    taken = _split_charges(connection, read_unbilled(connection, ids, until, today), until, only)
    return _keep(connection, letterhead, drafts, taken)


def take_charges(
    connection: Connection, letterhead: Letterhead, today: date, drafts: Sequence[Draft]
) -> list[DraftWithLines]:
    """Store all billable charges, and replace the lines of the drafts by lines for these charges.

    The charges are assigned to the drafts later, by `have_draft`.
    """
    ids, until, only = _alike(drafts)
    charges.accrue(connection, ids, until, today=today, running=midnight(until))
    taken = _split_charges(connection, charges.unbilled(connection, ids), until, only)
    return _keep(connection, letterhead, drafts, taken)


def require_final(
    connection: Connection, letterhead: Letterhead, today: date, rates: Rates, drawn: DraftWithLines
) -> DraftWithLines:
    """Return a draft with its tax in the accounting currency, by the rates of today.

    Raise `Unprocessable` if it must not become final as drawn, `UnseenLetters` if it is unknown whether the
    fonts have all its letters.
    """
    if drawn.left and not drawn.bill.lines:
        raise Unprocessable("This cannot become final.", (("lines", f"has none. {drawn.left}"),))
    descriptions = [line.description for line in drawn.bill.lines]
    currency, tax = drawn.known.facts.currency, _tax_of(drawn)
    try:
        accounting_tax = convert_tax(rates, letterhead, today, currency, tax)
    except Unprocessable:
        # A credit note has the rate of its invoice; its own day's is only needed where that has none.
        if drawn.kind != CREDIT_NOTE or not _corrects_rated(connection, drawn, tax):
            raise
        accounting_tax = None
    document = replace(drawn.document, accounting_tax=accounting_tax)
    require_complete(document, descriptions, letterhead.missing_glyphs)
    return drawn._replace(document=document)


def _corrects_rated(connection: Connection, drawn: DraftWithLines, tax: Decimal) -> bool:
    """Return whether an invoice that a credit note will correct has a rate, by assigning its charges."""
    id_ = drawn.draft.invoice_id
    with connection.begin_nested() as trial:
        charges.bill(connection, [(id_, *placed) for placed in drawn.bill.placed])
        corrected = corrected_by(connection, {"id": id_, "corrects_id": None})
        converted = tax_of_note(connection, corrected, tax)
        trial.rollback()
    return converted is not None


def have_draft(connection: Connection, drawn: Sequence[DraftWithLines]) -> list[Final]:
    """Assign the charges on the drafts' lines to the drafts; then only `finish_final` is left to do."""
    ids = [item.draft.invoice_id for item in drawn]
    charges.bill(
        connection,
        [(id_, *placed) for id_, item in zip(ids, drawn, strict=True) for placed in item.bill.placed],
    )
    owing = [item.draft.invoice_id for item in drawn if owes_credits(item)]
    if owing:
        credit_balances.bill_debt(connection, owing)
    monthly = [item for item in drawn if item.draft.only is None]
    covers: Mapping[int, Row] = {}
    if monthly:
        months = [(item.draft.invoice_id, item.draft.organization_id, item.draft.until) for item in monthly]
        invoice_lines.tell_credits(connection, months)
        since = {item.draft.organization_id: item.known.since for item in monthly}
        covers = invoice_lines.covers_of(connection, since)
    documents = dict[int, str]()
    for item in drawn:
        document, id_ = item.document, item.draft.invoice_id
        if item.kind == CREDIT_NOTE:
            # A credit note names the invoices that it corrects, known once its charges are assigned.
            corrected = tuple(corrected_by(connection, {"id": id_, "corrects_id": None}))
            converted = tax_of_note(connection, corrected, _tax_of(item)) or document.accounting_tax
            document = replace(document, corrects=corrected, accounting_tax=converted)
        if item.kind == CREDIT_NOTE or document.accounting_tax is not None:
            documents[id_] = json.dumps(document.as_json())
    if documents:
        connection.execute(_DOCUMENTS, {"ids": [*documents], "documents": [*documents.values()]})
    return [
        Final(
            item.draft.invoice_id, item.kind, item.total, item.known.organization.due_days,
            covers.get(item.draft.organization_id) if item.draft.only is None else None,
        )
        for item in drawn
    ]  # fmt: skip


def finish_final(
    connection: Connection, letterhead: Letterhead, now: datetime, finals: Sequence[Final]
) -> list[str | None]:
    """Assign numbers to these drafts in order and make them final; return the payment status of each."""
    today = now.astimezone(UTC).date()
    due_dates: list[date | None] = []
    statuses: list[str | None] = []
    for final in finals:
        if final.kind != INVOICE:
            due_dates.append(None)
            statuses.append(None)
            continue
        due_date = due_on(today, letterhead.due_days if final.due_days is None else final.due_days)
        due_dates.append(due_date)
        statuses.append(OpenInvoice(final.total, due_date).status(today))
    ids = [final.invoice_id for final in finals]
    covers = [None if final.covers is None else json.dumps(final.covers) for final in finals]
    numbers = next_numbers(connection, now, len(finals))
    connection.execute(_FINAL, {
        "now": now, "ids": ids, "numbers": list(numbers), "covers": covers, "due_dates": due_dates,
        "statuses": statuses,
    })  # fmt: skip
    tell_invoices(connection, ids)
    for listener in invoice_listeners():
        listener.final(connection, ids)
    return statuses


def _tax_of(drawn: DraftWithLines) -> Decimal:
    return sum((line.amount for line in drawn.bill.lines if line.kind == "tax"), Decimal(0))


def owes_credits(drawn: DraftWithLines) -> bool:
    return any(charge.source == DEBT for charge, _ in drawn.bill.placed)


def _alike(drafts: Sequence[Draft]) -> tuple[list[int], date, ChargeSelection | None]:
    [(until, only)] = {(draft.until, draft.only) for draft in drafts}
    return [draft.organization_id for draft in drafts], until, only


def _split_charges(
    connection: Connection,
    owed: Mapping[int, Sequence[SupplyCharge]],
    until: date,
    only: ChargeSelection | None,
) -> dict[int, ChargeSplit]:
    segments = charges.segments(connection, list(owed))
    return {
        owner: split_at_maxima(gather_charges(some, until, segments[owner], only))
        for owner, some in owed.items()
    }


def _keep(
    connection: Connection, letterhead: Letterhead, drafts: Sequence[Draft], taken: Mapping[int, ChargeSplit]
) -> list[DraftWithLines]:
    """Store lines for the charges in `taken`, by organization, on the drafts.

    Also store a text on the charges that are left to another invoice.
    """
    wanted = [
        InvoiceCharges(
            draft.organization_id, draft.start, draft.until, taken.get(draft.organization_id, NOTHING).taken
        )
        for draft in drafts
    ]
    facts = read_facts(connection, wanted)
    left = {
        draft.invoice_id: left_out(
            taken.get(draft.organization_id, NOTHING).left, facts[draft.organization_id].facts.currency
        )
        for draft in drafts
    }
    bills = {}
    for draft in drafts:
        sums = facts[draft.organization_id].facts
        bills[draft.invoice_id] = bill(sums if draft.only is None else replace(sums, credits_consumed=0))
    connection.execute(_CLEAR, {"ids": list(bills)})
    totals = keep_lines(connection, {id_: made.lines for id_, made in bills.items()})
    drawn = [
        # An invoice with a negative total becomes a credit note of the invoices whose charges it refunds.
        DraftWithLines(
            draft, bills[draft.invoice_id], totals[draft.invoice_id],
            CREDIT_NOTE if totals[draft.invoice_id] < 0 else INVOICE,
            _document(letterhead, facts[draft.organization_id], left[draft.invoice_id]),
            facts[draft.organization_id], left[draft.invoice_id],
        )
        for draft in drafts
    ]  # fmt: skip
    connection.execute(_KEEP, {
        "ids": list(bills), "totals": list(totals.values()), "kinds": [item.kind for item in drawn],
        "currencies": [item.known.facts.currency for item in drawn],
        "customers": [item.known.organization.name for item in drawn],
        "documents": [json.dumps(item.document.as_json()) for item in drawn],
    })  # fmt: skip
    return drawn


def _document(letterhead: Letterhead, known: InvoiceInputs, left: str) -> Document:
    made = document_of(letterhead, known.organization)
    return replace(made, notes=(*made.notes, left)) if left else made
