"""Invoices gather charges: lines of drafts, and what finalizing takes. Of one organization or many, by the
same statements.

The caller holds the organizations and, to finalize, the flushes of their partitions. A number is what others
wait for, so it is taken behind everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, text

from gateway.core.accounts.administration import Row
from gateway.core.billing.bounds import NOTHING, Borne, borne, left_out
from gateway.core.billing.charge import DEBT, ONE_DAY, Charge, Wanted, gathered
from gateway.core.billing.document import CREDIT_NOTE, INVOICE, Document, Letterhead, require_complete
from gateway.core.billing.invoice import Bill, bill
from gateway.core.billing.payment import Receivable, due_on
from gateway.core.billing.subscription import midnight
from gateway.errors import Unprocessable
from persistence.billing import allocations, charges, debts, handovers, invoice_covers
from persistence.billing.documents import corrected_by, document_of
from persistence.billing.invoice_facts import Gathered, Known, read_facts
from persistence.billing.invoice_lines import keep_lines
from persistence.billing.invoice_numbers import next_numbers
from persistence.billing.placed import known
from persistence.keeper.notices import tell_invoices

_CLEAR = text("DELETE FROM invoice_line WHERE invoice_id = ANY(cast(:ids AS bigint[]))")
_KEEP = text("""
UPDATE invoice AS i SET total_amount = n.total, kind = n.kind, currency = n.currency, customer = n.customer,
       document = n.document
  FROM unnest(cast(:ids AS bigint[]), cast(:totals AS numeric[]), cast(:kinds AS text[]),
              cast(:currencies AS text[]), cast(:customers AS text[]), cast(:documents AS jsonb[]))
    AS n (id, total, kind, currency, customer, document) WHERE i.id = n.id""")
_DOCUMENT = text("UPDATE invoice SET document = cast(:document AS jsonb) WHERE id = :id")
_FINAL = text("""
UPDATE invoice AS i SET status = 'finalized', number = n.number, finalized_at = :now, covers = n.covers,
       due_date = n.due_date, payment_status = n.payment_status
  FROM unnest(cast(:ids AS bigint[]), cast(:numbers AS text[]), cast(:covers AS jsonb[]),
              cast(:due_dates AS date[]), cast(:statuses AS text[]))
    AS n (id, number, covers, due_date, payment_status) WHERE i.id = n.id""")


class Draft(NamedTuple):
    """An invoice that is no number yet: whose it is, its days (the last not included), its one source."""

    invoice_id: int
    organization_id: int
    start: date
    until: date
    only: Wanted | None = None


class Drawn(NamedTuple):
    """A draft with its lines, as they were kept."""

    draft: Draft
    bill: Bill
    total: Decimal
    kind: str
    document: Document
    known: Known
    # Why not all that is owed is on it; empty where it is.
    left: str = ""


class Final(NamedTuple):
    """What becomes final, and what is noted with it."""

    invoice_id: int
    kind: str
    total: Decimal
    due_days: int | None
    covers: Row | None = None


def of_source(
    connection: Connection, organization_ids: Sequence[int], until: date, today: date, only: Wanted
) -> dict[int, Borne]:
    """What one source owes that no invoice has, by organization; whose owes nothing is left out."""
    ids = list(organization_ids)
    allocations.catch_up(connection, ids)
    taken = _taken(connection, known(connection, ids, until, today), until, only)
    return {owner: some for owner, some in taken.items() if some.taken or some.left}


def days_of(taken: Sequence[Charge]) -> tuple[date, date]:
    """The days that an invoice of charges is of, the last not included: it is in nobody's way."""
    ends = max((each.end - ONE_DAY).astimezone(UTC).date() for each in taken) + ONE_DAY
    return min(each.day for each in taken), ends


def draw(connection: Connection, letterhead: Letterhead, today: date, drafts: Sequence[Draft]) -> list[Drawn]:
    """Make drafts' lines of what each would take now: all are up to the same day."""
    ids, until, only = _alike(drafts)
    allocations.catch_up(connection, ids)
    taken = _taken(connection, known(connection, ids, until, today), until, only)
    return _keep(connection, letterhead, drafts, taken)


def take(connection: Connection, letterhead: Letterhead, today: date, drafts: Sequence[Draft]) -> list[Drawn]:
    """Charge what is known, and make drafts' lines of what each has from now on; `have` lets it have them."""
    ids, until, only = _alike(drafts)
    charges.accrue(connection, ids, until, today=today, running=midnight(until))
    taken = _taken(connection, charges.unbilled(connection, ids), until, only)
    return _keep(connection, letterhead, drafts, taken)


def require_final(letterhead: Letterhead, drawn: Drawn) -> None:
    """`Unprocessable` where a draft must not become final as it was drawn; `UnseenLetters` if unknown."""
    if drawn.left and not drawn.bill.lines:
        raise Unprocessable("This cannot become final.", (("lines", f"has none. {drawn.left}"),))
    said = [line.description for line in drawn.bill.lines]
    require_complete(drawn.document, said, letterhead.missing_glyphs)


def have(connection: Connection, drawn: Sequence[Drawn]) -> list[Final]:
    """Let drafts have the charges that they took; what is left is to finish them."""
    of = [each.draft.invoice_id for each in drawn]
    charges.bill(
        connection,
        [(id_, *placed) for id_, each in zip(of, drawn, strict=True) for placed in each.bill.placed],
    )
    owing = [each.draft.invoice_id for each in drawn if owes_credits(each)]
    if owing:
        debts.bill(connection, owing)
    monthly = [each for each in drawn if each.draft.only is None]
    covers: Mapping[int, Row] = {}
    if monthly:
        told = [(each.draft.invoice_id, each.draft.organization_id, each.draft.until) for each in monthly]
        invoice_covers.tell_credits(connection, told)
        since = {each.draft.organization_id: each.known.since for each in monthly}
        covers = invoice_covers.covers(connection, since)
    for each in drawn:
        if each.kind == CREDIT_NOTE:
            _name_corrected(connection, each)
    return [
        Final(
            each.draft.invoice_id, each.kind, each.total, each.known.organization.due_days,
            covers.get(each.draft.organization_id) if each.draft.only is None else None,
        )
        for each in drawn
    ]  # fmt: skip


def finish(
    connection: Connection, letterhead: Letterhead, now: datetime, finals: Sequence[Final]
) -> list[str | None]:
    """Give drafts their numbers, in their order: from now on nothing changes them.

    Answers where each stands with being paid.
    """
    today = now.astimezone(UTC).date()
    due_dates: list[date | None] = []
    statuses: list[str | None] = []
    for each in finals:
        if each.kind != INVOICE:
            due_dates.append(None)
            statuses.append(None)
            continue
        due_date = due_on(today, letterhead.due_days if each.due_days is None else each.due_days)
        due_dates.append(due_date)
        statuses.append(Receivable(each.total, due_date).status(today))
    ids = [each.invoice_id for each in finals]
    covers = [None if each.covers is None else json.dumps(each.covers) for each in finals]
    numbers = next_numbers(connection, now, len(finals))
    connection.execute(_FINAL, {
        "now": now, "ids": ids, "numbers": list(numbers), "covers": covers, "due_dates": due_dates,
        "statuses": statuses,
    })  # fmt: skip
    tell_invoices(connection, ids)
    handovers.tell_final(connection, ids)
    return statuses


def owes_credits(drawn: Drawn) -> bool:
    """Whether it bills credits beyond the balance."""
    return any(charge.source == DEBT for charge, _ in drawn.bill.placed)


def _alike(drafts: Sequence[Draft]) -> tuple[list[int], date, Wanted | None]:
    [(until, only)] = {(each.until, each.only) for each in drafts}
    return [each.organization_id for each in drafts], until, only


def _taken(
    connection: Connection, owed: Mapping[int, Sequence[Charge]], until: date, only: Wanted | None
) -> dict[int, Borne]:
    segments = charges.segments(connection, list(owed))
    return {owner: borne(gathered(some, until, segments[owner], only)) for owner, some in owed.items()}


def _keep(
    connection: Connection, letterhead: Letterhead, drafts: Sequence[Draft], taken: Mapping[int, Borne]
) -> list[Drawn]:
    """Keep the lines of charges, and say what of them is left for another invoice."""
    wanted = [
        Gathered(of.organization_id, of.start, of.until, taken.get(of.organization_id, NOTHING).taken)
        for of in drafts
    ]
    facts = read_facts(connection, wanted)
    left = {
        each.invoice_id: left_out(
            taken.get(each.organization_id, NOTHING).left, facts[each.organization_id].facts.currency
        )
        for each in drafts
    }
    bills = {}
    for each in drafts:
        said = facts[each.organization_id].facts
        bills[each.invoice_id] = bill(said if each.only is None else replace(said, credits_consumed=0))
    connection.execute(_CLEAR, {"ids": list(bills)})
    totals = keep_lines(connection, {id_: made.lines for id_, made in bills.items()})
    drawn = [
        # What gives back more than it bills is a credit note, of the invoices that billed it.
        Drawn(
            each, bills[each.invoice_id], totals[each.invoice_id],
            CREDIT_NOTE if totals[each.invoice_id] < 0 else INVOICE,
            _document(letterhead, facts[each.organization_id], left[each.invoice_id]),
            facts[each.organization_id], left[each.invoice_id],
        )
        for each in drafts
    ]  # fmt: skip
    connection.execute(_KEEP, {
        "ids": list(bills), "totals": list(totals.values()), "kinds": [each.kind for each in drawn],
        "currencies": [each.known.facts.currency for each in drawn],
        "customers": [each.known.organization.name for each in drawn],
        "documents": [json.dumps(each.document.as_json()) for each in drawn],
    })  # fmt: skip
    return drawn


def _document(letterhead: Letterhead, known: Known, left: str) -> Document:
    made = document_of(letterhead, known.organization)
    return replace(made, notes=(*made.notes, left)) if left else made


def _name_corrected(connection: Connection, drawn: Drawn) -> None:
    """Copy into a credit note which invoices billed what it gives back: known once it has its charges."""
    row = {"id": drawn.draft.invoice_id, "corrects_id": None}
    named = replace(drawn.document, corrects=tuple(corrected_by(connection, row)))
    connection.execute(_DOCUMENT, {"id": drawn.draft.invoice_id, "document": json.dumps(named.as_json())})
