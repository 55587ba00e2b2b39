"""Credit notes: a draft has lines of the invoice turned round, and a final one gives back their charges."""

from __future__ import annotations

from sqlalchemy import func, insert, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.credit_note import partial_note, whole_note
from gateway.errors import Conflict
from persistence.billing import taken_back
from persistence.billing.invoice_lines import keep_lines, line_of, lines_of
from persistence.subject import Change
from persistence.tables import invoice, invoice_line

_GIVEN = text("""
SELECT l.corrects_position AS position, -sum(l.amount) AS amount
  FROM invoice_line AS l JOIN invoice AS n ON n.id = l.invoice_id
 WHERE n.corrects_id = :id AND n.status <> 'void' GROUP BY 1""")
_GIVEN_BY = text("""
SELECT l.corrects_position AS position, -sum(l.amount) AS amount
  FROM invoice_line AS l JOIN invoice AS n ON n.id = l.invoice_id
 WHERE n.corrects_id = :id AND (n.status = 'finalized' OR n.id = :note) GROUP BY 1""")
_THERE = {
    "finalized": "A credit note gives this invoice back already.",
    "draft": "There is a draft of a credit note for this invoice; delete it.",
}


def draft(change: Change, row: Row) -> int:
    """Make a draft over all that is left of the command's invoice, or the lines asked for; answers its id."""
    lines = {each.position: line_of(each) for each in lines_of(change, change.row_id)}
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
    total = keep_lines(change.connection, {note_id: list(note.values())}, list(note))[note_id]
    change.connection.execute(update(invoice).where(invoice.c.id == note_id).values(total_amount=total))
    return note_id


def give_back(change: Change, invoice_id: int) -> None:
    """Give back the charges behind the lines of a note: all that is left where nothing of a line is."""
    here = {"id": invoice_id, "note": change.row_id}
    given = {row.position: row.amount for row in change.connection.execute(_GIVEN_BY, here)}
    billed = {row.position: row for row in lines_of(change, invoice_id)}
    for row in lines_of(change, change.row_id):
        line = billed[row.corrects_position]
        rest = None if given.get(line.position) == line.amount else row.amount
        corrected = (invoice_id, line.position)
        exact = taken_back.credit(change.connection, change.row_id, row.position, corrected, rest)
        kept = update(invoice_line).where(invoice_line.c.id == row.id)
        change.connection.execute(kept.values(exact=exact, basis=None if exact is None else line.basis))


def refuse_while_there(change: Change) -> None:
    """`Conflict` where a credit note gives the command's invoice back, or would."""
    for status, message in _THERE.items():
        notes = select(func.count()).where(invoice.c.corrects_id == change.row_id, invoice.c.status == status)
        if change.connection.execute(notes).scalar_one():
            raise Conflict(message)
