"""Payments and refunds: append-only rows, each once by its reference, and their effect on invoices.

A caller that changes the amount due of an invoice has locked the organization. Afterwards it calls `settle`,
or `apply_open` if credit may be open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, case, func, insert, select, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.invoice import BillLine, amended_back, partial_note, whole_note
from gateway.core.billing.payments import (
    ASKED,
    OLDEST,
    OWN,
    VOID,
    WAITING,
    Left,
    OpenInvoice,
    require_open,
    require_payable,
    require_returnable,
    spread_credit,
)
from gateway.core.billing.payments import (
    PAID as STATUS_PAID,
)
from gateway.errors import Conflict, Unprocessable
from persistence.billing import charges, credit_grants, top_ups
from persistence.billing.invoice_heads import PAID, money, rest_of
from persistence.billing.invoice_lines import keep_lines, line_of, lines_of
from persistence.billing.listeners import invoice_listeners
from persistence.entity import Entity, EntityWrite, id_in, lock
from persistence.keeper.news import tell_payment_status
from persistence.queries import query
from persistence.tables import invoice, invoice_line, note_application, payment


def rest_before(moment: str) -> str:
    """Return SQL for the amount due of invoice `i` just before a moment; a note's credit is negative."""
    return f"""i.total_amount
           - coalesce((SELECT sum(p.amount) FROM payment AS p
                        WHERE p.invoice_id = i.id AND p.created_at < {moment}), 0)
           - coalesce((SELECT sum(a.amount) FROM note_application AS a
                        WHERE a.invoice_id = i.id AND a.created_at < {moment}), 0)
           + coalesce((SELECT sum(a.amount) FROM note_application AS a
                        WHERE a.note_id = i.id AND a.created_at < {moment}), 0)"""


# Credit of notes, applied to invoices: append-only rows, negative for a reversal.
#
# A note first refunds the amount due of the invoice that it corrects. The rest is open credit of the
# organization. The caller has locked the organization, and settles the returned invoices. A feature that
# collects payments elsewhere has a credit balance of its own there.

_LEFT = rest_before("'infinity'")
_HERE = " AND ".join(f"NOT ({listener.elsewhere})" for listener in invoice_listeners()) or "true"
_NOTE = "i.kind = 'credit_note' AND i.status = 'finalized' AND NOT i.used_up"
_NOTES = f"""
SELECT i.id, i.organization_id, i.currency, i.corrects_id, -({_LEFT}) AS open
  FROM invoice AS i WHERE {_NOTE}"""
_OPEN = query("payments.open", "Select open notes of organizations", f"""
{_NOTES} AND i.organization_id = ANY(cast(:organizations AS bigint[])) AND {_HERE}
 ORDER BY i.finalized_at, i.id""")  # fmt: skip
_OWN = query("payments.own", "Select open notes of an invoice", f"""
{_NOTES} AND i.corrects_id = :invoice ORDER BY i.finalized_at, i.id""")  # fmt: skip
_USED_UP = query("payments.used_up", "Store whether notes are used up",
    "UPDATE invoice SET used_up = :used_up WHERE id = ANY(cast(:notes AS bigint[]))")  # fmt: skip
# Few organizations have overdue invoices, so their notes are searched, not all notes.
_WAITING = query("payments.waiting", "Select notes that overdue invoices wait for", f"""
WITH late AS MATERIALIZED (
    SELECT DISTINCT i.organization_id, i.currency FROM invoice AS i
     WHERE i.organization_id > :after AND {_HERE} AND (i.payment_status IN ('overdue', 'uncollectible')
           OR i.payment_status = 'open' AND i.due_date < :today)
)
SELECT DISTINCT i.organization_id FROM late AS l
  JOIN invoice AS i ON i.organization_id = l.organization_id AND i.currency = l.currency
 WHERE {_NOTE} AND {_HERE} AND {_LEFT} < 0 ORDER BY 1 LIMIT :count""")  # fmt: skip
_LEFT_OF = query("payments.left_of", "Select the amount due of an invoice",
    f"SELECT {_LEFT} FROM invoice AS i WHERE i.id = :invoice")  # fmt: skip
_DUE = query("payments.due", "Select invoices that are due", f"""
SELECT * FROM (
    SELECT i.id, i.organization_id, i.currency, i.due_date, {_LEFT} AS due FROM invoice AS i
     WHERE i.organization_id = ANY(cast(:organizations AS bigint[])) AND {_HERE}
       AND (i.payment_status IN ('open', 'overdue', 'uncollectible') OR i.id = ANY(cast(:also AS bigint[])))
       AND i.payment_status IS NOT NULL
       AND (NOT :past_due OR i.due_date < :today OR i.uncollectible_at IS NOT NULL)) AS d
 WHERE due > 0 ORDER BY due_date NULLS FIRST, id""")  # fmt: skip
_ADD = query("payments.add", "Add applications of notes", """
INSERT INTO note_application (organization_id, note_id, invoice_id, amount, currency, reason, actor,
                              created_at)
SELECT n.organization_id, n.id, a.invoice_id, a.amount, n.currency, :reason, :actor, :now
  FROM unnest(cast(:notes AS bigint[]), cast(:invoices AS bigint[]), cast(:amounts AS numeric[]))
       WITH ORDINALITY AS a (note_id, invoice_id, amount, place) JOIN invoice AS n ON n.id = a.note_id
 ORDER BY a.place""")  # fmt: skip
_APPLIED = query("payments.applied", "Select the applications of a document", """
SELECT note_id, invoice_id, -sum(amount) AS amount FROM note_application
 WHERE note_id = :document OR invoice_id = :document GROUP BY 1, 2 HAVING sum(amount) <> 0 ORDER BY 1, 2""")  # fmt: skip
_IS_HERE = query("payments.is_here", "Select whether an invoice counts",
    f"SELECT {_HERE} FROM invoice AS i WHERE i.id = :document")  # fmt: skip


def open_credit_due(connection: Connection, today: date, after: int, count: int) -> list[int]:
    """Return up to `count` organizations with open credit and an overdue invoice, by id, beyond `after`."""
    return list(connection.execute(_WAITING, {"today": today, "after": after, "count": count}).scalars())


def open_credit_owners(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    rows = connection.execute(_OPEN, {"organizations": list(organization_ids)})
    return sorted({row.organization_id for row in rows if row.open})


def give_own(change: EntityWrite, invoice_id: int) -> bool:
    """Apply the unused credit of the notes that correct an invoice to it; return whether there was any."""
    notes = change.connection.execute(_OWN, {"invoice": invoice_id}).all()
    if not notes:
        return False
    due = change.connection.execute(_LEFT_OF, {"invoice": invoice_id}).scalar_one()
    spread = spread_credit([(note.id, note.open) for note in notes], [(invoice_id, due)])
    add_open_credit(change, OWN, spread)
    return bool(spread)


def apply_oldest(
    change: EntityWrite, organization_id: int, *, past_due: bool, also: Collection[int] = ()
) -> set[int]:
    """Apply an organization's unused credit to its unpaid invoices, oldest credit and oldest invoice first.

    Return the ids of the invoices that received credit. With `past_due`, only overdue invoices receive some;
    invoices in `also` are included in any case.
    """
    here = {"organizations": [organization_id]}
    notes = change.connection.execute(_OPEN, here).all()
    if not notes:
        return set()
    corrected = sorted({note.corrects_id for note in notes if note.corrects_id is not None})
    own = {invoice_id for invoice_id in corrected if give_own(change, invoice_id)}
    if own:
        notes = change.connection.execute(_OPEN, here).all()
    asked = here | {"past_due": past_due, "today": change.today, "also": list(also)}
    dues = _sum_by_currency(change.connection.execute(_DUE, asked), "due")
    spread = [
        part
        for currency, some in _sum_by_currency(notes, "open").items()
        for part in spread_credit(some, dues[currency])
    ]
    add_open_credit(change, OLDEST, spread)
    left = {note.id: note.open for note in notes}
    for note_id, _, amount in spread:
        left[note_id] -= amount
    _note_used_up(change, [note_id for note_id, rest in left.items() if not rest], used_up=True)
    return own | {invoice_id for _, invoice_id, _ in spread}


def take_back_credit(change: EntityWrite, document_id: int) -> set[int]:
    """Undo the use of credit by or for a voided document; return the ids of the invoices concerned."""
    found = [tuple(row) for row in change.connection.execute(_APPLIED, {"document": document_id})]
    add_open_credit(change, VOID, found)
    reopen_credit(change, [note_id for note_id, _, _ in found if note_id != document_id])
    return {invoice_id for _, invoice_id, _ in found}


def reopen_credit(change: EntityWrite, note_ids: Sequence[int]) -> None:
    _note_used_up(change, note_ids, used_up=False)


def add_open_credit(change: EntityWrite, reason: str, rows: Iterable[tuple[int, int, Decimal]]) -> None:
    """Store applications of credit notes to invoices: note id, invoice id and amount."""
    some = list(rows)
    if some:
        notes, invoices, amounts = (list(column) for column in zip(*some, strict=True))
        change.connection.execute(_ADD, {
            "notes": notes, "invoices": invoices, "amounts": amounts, "reason": reason,
            "actor": change.command.actor.scope, "now": change.now,
        })  # fmt: skip


def _note_used_up(change: EntityWrite, note_ids: Sequence[int], *, used_up: bool) -> None:
    if note_ids:
        change.connection.execute(_USED_UP, {"notes": list(note_ids), "used_up": used_up})


def _sum_by_currency(rows: Iterable[Any], amount: str) -> dict[str, list[Left]]:
    found = defaultdict[str, list[Left]](list)
    for row in rows:
        found[row.currency].append((row.id, getattr(row, amount)))
    return found


_OVERDUE = query("payments.overdue", "Mark invoices as overdue", """
UPDATE invoice SET payment_status = 'overdue'
 WHERE payment_status = 'open' AND id = ANY(ARRAY(
       SELECT id FROM invoice WHERE payment_status = 'open' AND due_date < :today
        ORDER BY due_date, id LIMIT :count FOR UPDATE SKIP LOCKED))
RETURNING id""")  # fmt: skip
# The state of an invoice: the amount due, the amounts received as payments and as credit of other invoices'
# notes, and its total less the amounts that its own notes refund.
_STANDS = query("payments.stands", "Select the state of an invoice", f"""
SELECT i.organization_id, i.number, i.payment_status, i.due_date, i.uncollectible_at,
       {rest_before("'infinity'")} AS rest,
       coalesce((SELECT sum(p.amount) FROM payment AS p WHERE p.invoice_id = i.id), 0)
           + coalesce((SELECT sum(a.amount) FROM note_application AS a JOIN invoice AS n ON n.id = a.note_id
                        WHERE a.invoice_id = i.id AND n.corrects_id IS DISTINCT FROM i.id), 0) AS came,
       i.total_amount + coalesce((SELECT sum(n.total_amount) FROM invoice AS n
                                   WHERE n.corrects_id = i.id AND n.status = 'finalized'), 0) AS wanted
  FROM invoice AS i WHERE i.id = :id FOR UPDATE OF i""")  # fmt: skip
_TO_APPLY = query("payments.to_apply", "Select the invoice that a note is applied to", """
SELECT id FROM invoice WHERE id = :id AND organization_id = :organization AND currency = :currency
   AND payment_status IS NOT NULL""")  # fmt: skip


def held(change: EntityWrite) -> Row:
    """Return the command's invoice, once its organization and the row are locked."""
    charges.hold(change.connection, id_in(change.fetch(), "organization_id"))
    return lock(change)


def record(change: EntityWrite) -> Row:
    """Record a payment of the command's invoice, unless its reference is recorded; return the row."""
    row = held(change)
    amount, reference = Decimal(str(change.command.values["amount"])), str(change.command.values["reference"])
    if _is_known(change.connection, change.row_id, reference, amount, None):
        return row
    if row["status"] != "finalized" or row["kind"] != "invoice":
        raise Conflict(f"The {_describe_document(row)} cannot be paid; only a finalized invoice can.")
    require_payable(amount, rest_of(change.connection, change.row_id), str(row["currency"]))
    _add(change, row, change.row_id, amount)
    settle(change, change.row_id)
    return change.fetch()


def refund(change: EntityWrite) -> Row:
    """Record that unused credit of the command's note was paid out; return the row.

    A payout whose reference was recorded already is ignored.
    """
    row = held(change)
    amount, reference = Decimal(str(change.command.values["amount"])), str(change.command.values["reference"])
    if not _is_known(change.connection, change.row_id, reference, -amount, None):
        _require_open(change, row, amount)
        _add(change, row, change.row_id, -amount)
    return change.fetch()


def apply(change: EntityWrite) -> Row:
    """Apply open credit of the command's note to the given invoice."""
    row, invoice_id = held(change), id_in(change.command.values, "invoice_id")
    amount = Decimal(str(change.command.values["amount"]))
    _require_open(change, row, amount)
    selection = {"id": invoice_id, "organization": row["organization_id"], "currency": row["currency"]}
    if change.connection.execute(_TO_APPLY, selection).first() is None:
        wanted = f"must be a final invoice of the same organization in {row['currency']}"
        raise Unprocessable(errors=(("invoice_id", wanted),))
    require_payable(amount, rest_of(change.connection, invoice_id), str(row["currency"]))
    add_open_credit(change, ASKED, [(change.row_id, invoice_id, amount)])
    settle(change, invoice_id)
    return change.fetch()


def give_up(change: EntityWrite) -> Row:
    """Mark the amount due of the command's invoice as uncollectible."""
    row = held(change)
    if row["payment_status"] not in WAITING:
        raise Conflict(f"The {_describe_document(row)} waits for no payment.")
    statement = update(invoice).where(invoice.c.id == change.row_id)
    change.connection.execute(statement.values(uncollectible_at=change.now))
    apply_open(change, id_in(row, "organization_id"), also=[change.row_id])
    return change.fetch()


def reverse(change: EntityWrite) -> Row:
    """Reverse a payment or refund, or a part of it, by a row with the opposite sign."""
    # A payment never changes, so its row is not locked; its organization is.
    organization_id = id_in(change.fetch(), "organization_id")
    charges.hold(change.connection, organization_id)
    row = change.before = change.fetch()
    values = change.command.values
    asked, reference, left = values.get("amount"), str(values["reference"]), Decimal(str(row["amount_left"]))
    if row["corrects_id"] is not None:
        raise Conflict("This gives a payment back already; record a new payment.")
    invoice_id, rest, sign = id_in(row, "invoice_id"), abs(left), -1 if Decimal(str(row["amount"])) > 0 else 1
    amount = rest if asked is None else Decimal(str(asked))
    # A repeated message without an amount means the amount that was left the first time.
    same = None if asked is None else sign * amount
    if not _is_known(change.connection, invoice_id, reference, same, change.row_id):
        require_returnable(amount, rest, str(row["currency"]))
        _add(change, row, invoice_id, sign * amount, change.row_id)
        if sign > 0:
            reopen_credit(change, [invoice_id])
        apply_open(change, organization_id, also=[invoice_id])
    return change.fetch()


def take_from_balance(change: EntityWrite, prefix: str) -> None:
    """Undo the transfers of the command's voided note to a customer's balance at another system.

    The references of these transfers begin with `prefix`.
    """
    given = select(payment.c.id).where(
        payment.c.invoice_id == change.row_id, payment.c.amount < 0, payment.c.reference.startswith(prefix)
    )
    for row_id in change.connection.execute(given.order_by(payment.c.id.desc())).scalars().all():
        values = {"reference": f"{prefix}void:{row_id}"}
        command = replace(change.command, resource="payments", id=row_id, values=values)
        back = replace(change, subject=SUBJECT, before=None, command=command)
        if Decimal(str(back.fetch()["amount_left"])):
            reverse(back)


def apply_open(
    change: EntityWrite, organization_id: int, *, past_due: bool = True, also: Collection[int] = ()
) -> None:
    """Apply an organization's open credit to its overdue invoices, or without `past_due` to all due ones.

    Update the payment status of the invoices that got credit, and of those in `also`.
    """
    found = apply_oldest(change, organization_id, past_due=past_due, also=also)
    for invoice_id in sorted(found | set(also)):
        settle(change, invoice_id)


def settle(change: EntityWrite, invoice_id: int) -> None:
    """Set an invoice's payment status from the amount due, and report a changed status."""
    give_own(change, invoice_id)
    row = change.connection.execute(_STANDS, {"id": invoice_id}).one()
    if row.payment_status is None:
        return
    standing = OpenInvoice(row.rest, row.due_date, given_up=row.uncollectible_at is not None)
    status = standing.status(change.today)
    if status != row.payment_status:
        kept = update(invoice).where(invoice.c.id == invoice_id).values(payment_status=status)
        change.connection.execute(kept)
        tell_payment_status(change.connection, [invoice_id])
        for listener in invoice_listeners():
            listener.settled(change, invoice_id, status, row.came)
    # An invoice that its notes refund entirely is cancelled, even if a part of it was paid before.
    if status == STATUS_PAID and row.came > 0 and row.wanted > 0:
        top_ups.release(change, invoice_id)
        credit_grants.give_credits(
            change, {"id": invoice_id, "organization_id": row.organization_id, "number": row.number}
        )


def fall_overdue(connection: Connection, today: date, count: int) -> int:
    """Mark at most `count` open invoices past their due date as overdue; return their number."""
    fallen = list(connection.execute(_OVERDUE, {"today": today, "count": count}).scalars())
    if fallen:
        tell_payment_status(connection, fallen)
    return len(fallen)


def refuse_while_paid(change: EntityWrite) -> None:
    """Raise `Conflict` if the command's invoice has payments, or credit of its note was paid out."""
    paid = change.connection.execute(select(PAID).where(invoice.c.id == change.row_id)).scalar_one()
    if paid < 0:
        raise Conflict(f"{-paid.normalize():f} of this note is paid back: reverse the refunds.")
    if paid:
        raise Conflict(
            f"{paid.normalize():f} of this invoice is paid: give the payments back, or write a credit note."
        )


def _is_known(
    connection: Connection, invoice_id: int, reference: str, amount: Decimal | None, corrects_id: int | None
) -> bool:
    """Return whether this payment was recorded before; raise `Conflict` if it was a different one."""
    here = payment.c
    statement = select(here.amount, here.corrects_id, here.currency)
    known: Any = connection.execute(
        statement.where(here.invoice_id == invoice_id, here.reference == reference)
    ).first()
    if known is None:
        return False
    if known.corrects_id != corrects_id or amount not in {None, known.amount}:
        taken = f"{known.currency} {known.amount.normalize():f}"
        raise Conflict(
            f"The reference {reference!r} stands for {taken} already; another amount needs another."
        )
    return True


def _add(
    change: EntityWrite, row: Row, invoice_id: int, amount: Decimal, corrects_id: int | None = None
) -> None:
    made = insert(payment).values(
        organization_id=row["organization_id"], invoice_id=invoice_id, amount=amount,
        currency=row["currency"], reference=change.command.values["reference"], corrects_id=corrects_id,
        created_at=change.now,
    )  # fmt: skip
    change.connection.execute(made)


def _require_open(change: EntityWrite, row: Row, amount: Decimal) -> None:
    """Raise `Conflict` unless a document has credit to use here, `Unprocessable` if less than `amount`."""
    if row["status"] != "finalized" or row["kind"] != "credit_note":
        raise Conflict(f"The {_describe_document(row)} has no credit; only a finalized credit note has.")
    if not bool(change.connection.execute(_IS_HERE, {"document": change.row_id}).scalar_one()):
        raise Conflict(" ".join(listener.refusal for listener in invoice_listeners()))
    require_open(amount, -rest_of(change.connection, change.row_id), str(row["currency"]))


def _describe_document(row: Row) -> str:
    what = "credit note" if row["kind"] == "credit_note" else "invoice"
    return f"{row['payment_status'] or row['status']} {what}"


_back = payment.alias("back")
_given_back = (
    select(func.coalesce(func.sum(_back.c.amount), 0))
    .where(_back.c.corrects_id == payment.c.id)
    .scalar_subquery()
)
_left = case((payment.c.corrects_id.is_(None), payment.c.amount + _given_back), else_=0)
SUBJECT = Entity(
    payment,
    source=select(
        *(column for column in payment.c if column.name != "amount"),
        money(payment.c.amount, payment.c.currency).label("amount"),
        money(_left, payment.c.currency).label("amount_left"),
    ),
    verbs={"reverse": reverse},
)
APPLICATIONS = Entity(
    note_application,
    source=select(
        *(column for column in note_application.c if column.name != "amount"),
        money(note_application.c.amount, note_application.c.currency).label("amount"),
    ),
)


# Credit notes: a draft has the invoice's lines with the opposite sign, a final note refunds their charges.

_GIVEN = query("payments.given", "Add up notes of an invoice by line", """
SELECT l.corrects_position AS position, -sum(l.amount) AS amount
  FROM invoice_line AS l JOIN invoice AS n ON n.id = l.invoice_id
 WHERE n.corrects_id = :id AND n.status <> 'void' GROUP BY 1""")  # fmt: skip
_GIVEN_BY = query("payments.given_by", "Add up final notes of an invoice by line", """
SELECT l.corrects_position AS position, -sum(l.amount) AS amount
  FROM invoice_line AS l JOIN invoice AS n ON n.id = l.invoice_id
 WHERE n.corrects_id = :id AND (n.status = 'finalized' OR n.id = :note) GROUP BY 1""")  # fmt: skip
# What final notes of an amended price gave back of an invoice's lines: of each supply, the latest charges
# first, as far as notes by hand left them. The discount on a use follows it, with the other sign.
_GIVEN_BY_AMENDMENTS = query("payments.given_by_amendments", "Add up amended notes of an invoice by line", """
WITH back AS (
    SELECT c.kind, c.source, c.tenant_id, c.service_id, c.period_start, sign, -sum(sign * c.amount) AS amount
      FROM charge AS c JOIN invoice AS n ON n.id = c.invoice_id
     CROSS JOIN LATERAL (SELECT CASE c.kind WHEN 'discount' THEN -1 ELSE 1 END AS sign) AS s
     WHERE n.organization_id = :organization AND n.kind = 'credit_note' AND n.corrects_id IS NULL
       AND n.status = 'finalized' AND (c.kind = 'usage' OR c.kind = 'discount' AND c.service_id IS NOT NULL)
     GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(sign * c.amount) < 0
), kept AS (
    SELECT o.invoice_id, o.line, o.id, b.*, sign * (o.amount + coalesce((
               SELECT sum(c.amount) FROM charge AS c JOIN invoice AS n ON n.id = c.invoice_id
                WHERE c.corrects_id = o.id AND c.reason = 'credited' AND n.status = 'finalized'), 0)) AS rest
      FROM back AS b JOIN charge AS o ON (o.kind, o.source, o.period_start) = (b.kind, b.source, b.period_start)
       AND o.tenant_id IS NOT DISTINCT FROM b.tenant_id AND o.service_id IS NOT DISTINCT FROM b.service_id
      JOIN invoice AS i ON i.id = o.invoice_id
     WHERE i.organization_id = :organization AND i.kind = 'invoice' AND i.status = 'finalized'
       AND sign * o.amount > 0
), spread AS (
    SELECT *, sum(rest) OVER (PARTITION BY kind, source, tenant_id, service_id, period_start ORDER BY id DESC)
              - rest AS later FROM kept
)
SELECT line AS position, sum(sign * least(rest, greatest(amount - later, 0))) AS amount
  FROM spread WHERE invoice_id = :id AND line IS NOT NULL
   AND EXISTS (SELECT FROM invoice AS n WHERE n.organization_id = :organization  -- asked first, and seldom true
                  AND n.kind = 'credit_note' AND n.corrects_id IS NULL AND n.status = 'finalized') GROUP BY 1
HAVING sum(sign * least(rest, greatest(amount - later, 0))) <> 0""")  # fmt: skip
_THERE = {
    "finalized": "A credit note gives this invoice back already.",
    "draft": "There is a draft of a credit note for this invoice; delete it.",
}


def draft_credit_note(change: EntityWrite, row: Row) -> int:
    """Create a draft note for the rest of the command's invoice, or the requested lines; return its id."""
    lines = {line.position: line_of(line) for line in lines_of(change, change.row_id)}
    given = _returned_by_line(change, row, lines)
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
    total = keep_lines(change.connection, {note_id: list(note.values())}, list(note))[note_id]
    change.connection.execute(update(invoice).where(invoice.c.id == note_id).values(total_amount=total))
    return note_id


def _returned_by_line(change: EntityWrite, row: Row, lines: Mapping[int, BillLine]) -> dict[int, Decimal]:
    """Return by line what notes gave back of an invoice, those of an amended price included."""
    sums = change.connection.execute(_GIVEN, {"id": row["id"]})
    given = {int(line.position): line.amount for line in sums}
    amended = _amended(change.connection, row)
    for position, amount in amended_back(lines, given, amended, str(row["currency"])).items():
        given[position] = given.get(position, Decimal(0)) + amount
    return given


def _amended(connection: Connection, row: Row) -> dict[int, Decimal]:
    selection = {"id": row["id"], "organization": row["organization_id"]}
    return {int(line.position): line.amount for line in connection.execute(_GIVEN_BY_AMENDMENTS, selection)}


def give_back(change: EntityWrite, invoice_id: int) -> None:
    """Refund the charges of the invoice lines that the command's credit note refunds.

    If all of a line is refunded now, the rest of its exact charges is refunded, without a rounding
    difference.
    """
    require_left(change, invoice_id)
    here = {"id": invoice_id, "note": change.row_id}
    given = {row.position: row.amount for row in change.connection.execute(_GIVEN_BY, here)}
    billed = {row.position: row for row in lines_of(change, invoice_id)}
    for row in lines_of(change, change.row_id):
        line = billed[row.corrects_position]
        rest = None if given.get(line.position) == line.amount else row.amount
        corrected = (invoice_id, line.position)
        exact = charges.credit_charges(change.connection, change.row_id, row.position, corrected, rest)
        kept = update(invoice_line).where(invoice_line.c.id == row.id)
        change.connection.execute(kept.values(exact=exact, basis=None if exact is None else line.basis))


def require_left(change: EntityWrite, invoice_id: int) -> None:
    """Raise `Conflict` if a draft note gives back more than a note of an amended price has left since."""
    here = invoice.c
    head = select(here.id, here.organization_id, here.currency).where(here.id == invoice_id)
    row = change.connection.execute(head).one()._asdict()
    lines = {line.position: line_of(line) for line in lines_of(change, invoice_id)}
    given = _returned_by_line(change, row, lines)
    if any(given.get(at, Decimal(0)) > line.amount for at, line in lines.items() if line.amount > 0):
        raise Conflict(
            "Another credit note has given back some of these lines since: delete this draft and draft a new one."
        )


def refuse_while_there(change: EntityWrite, row: Row) -> None:
    """Raise `Conflict` if a credit note, final or draft, gives back the command's invoice."""
    if _amended(change.connection, row):
        raise Conflict(_THERE["finalized"])
    for status, message in _THERE.items():
        notes = select(func.count()).where(invoice.c.corrects_id == change.row_id, invoice.c.status == status)
        if change.connection.execute(notes).scalar_one():
            raise Conflict(message)
