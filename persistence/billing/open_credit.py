"""Credit of notes, applied to invoices: rows that are only added, below zero where they are taken back.

A note gives back what is left to pay of the invoice that it corrects. What is beyond that is open credit of
its organization. Whoever applies it holds the organization, and settles the invoices that are answered.
What Stripe has is left to Stripe: it has a balance of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.payment import OLDEST, OWN, VOID, Left, spread_credit
from persistence.billing.journal import rest_before
from persistence.subject import Change

_LEFT = rest_before("'infinity'")
_HERE = """NOT EXISTS (SELECT FROM handover AS h
                        WHERE h.invoice_id = i.id AND h.kind = i.kind AND h.state <> 'canceled')"""
_NOTE = "i.kind = 'credit_note' AND i.status = 'finalized' AND NOT i.used_up"
_NOTES = f"""
SELECT i.id, i.organization_id, i.currency, i.corrects_id, -({_LEFT}) AS open
  FROM invoice AS i WHERE {_NOTE}"""  # noqa: S608  # our own words
_OPEN = text(f"""
{_NOTES} AND i.organization_id = ANY(cast(:organizations AS bigint[])) AND {_HERE}
 ORDER BY i.finalized_at, i.id""")  # our own words
_OWN = text(f"""
{_NOTES} AND i.corrects_id = :invoice ORDER BY i.finalized_at, i.id""")  # our own words
_USED_UP = text("UPDATE invoice SET used_up = :used_up WHERE id = ANY(cast(:notes AS bigint[]))")
# Those that owe something past due are few: their notes are looked at.
_WAITING = text(f"""
WITH late AS MATERIALIZED (
    SELECT DISTINCT i.organization_id, i.currency FROM invoice AS i
     WHERE i.organization_id > :after AND {_HERE} AND (i.payment_status IN ('overdue', 'uncollectible')
           OR i.payment_status = 'open' AND i.due_date < :today)
)
SELECT DISTINCT i.organization_id FROM late AS l
  JOIN invoice AS i ON i.organization_id = l.organization_id AND i.currency = l.currency
 WHERE {_NOTE} AND {_HERE} AND {_LEFT} < 0 ORDER BY 1 LIMIT :count""")  # noqa: S608  # our own words
_LEFT_OF = text(f"SELECT {_LEFT} FROM invoice AS i WHERE i.id = :invoice")  # noqa: S608  # our own words
_DUE = text(f"""
SELECT * FROM (
    SELECT i.id, i.organization_id, i.currency, i.due_date, {_LEFT} AS due FROM invoice AS i
     WHERE i.organization_id = ANY(cast(:organizations AS bigint[])) AND {_HERE}
       AND (i.payment_status IN ('open', 'overdue', 'uncollectible') OR i.id = ANY(cast(:also AS bigint[])))
       AND i.payment_status IS NOT NULL
       AND (NOT :past_due OR i.due_date < :today OR i.uncollectible_at IS NOT NULL)) AS d
 WHERE due > 0 ORDER BY due_date NULLS FIRST, id""")  # noqa: S608  # our own words
_ADD = text("""
INSERT INTO note_application (organization_id, note_id, invoice_id, amount, currency, reason, actor,
                              created_at)
SELECT n.organization_id, n.id, a.invoice_id, a.amount, n.currency, :reason, :actor, :now
  FROM unnest(cast(:notes AS bigint[]), cast(:invoices AS bigint[]), cast(:amounts AS numeric[]))
       WITH ORDINALITY AS a (note_id, invoice_id, amount, place) JOIN invoice AS n ON n.id = a.note_id
 ORDER BY a.place""")
_APPLIED = text("""
SELECT note_id, invoice_id, -sum(amount) AS amount FROM note_application
 WHERE note_id = :document OR invoice_id = :document GROUP BY 1, 2 HAVING sum(amount) <> 0 ORDER BY 1, 2""")
_IS_HERE = text(f"SELECT {_HERE} FROM invoice AS i WHERE i.id = :document")  # noqa: S608  # our own words


def due(connection: Connection, today: date, after: int, count: int) -> list[int]:
    """Organizations with open credit and something past due, behind one of them, by id."""
    return list(connection.execute(_WAITING, {"today": today, "after": after, "count": count}).scalars())


def owners(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    """Organizations of these that have open credit."""
    rows = connection.execute(_OPEN, {"organizations": list(organization_ids)})
    return sorted({row.organization_id for row in rows if row.open})


def give_own(change: Change, invoice_id: int) -> bool:
    """Apply what notes over an invoice have left to what is left to pay of it; whether there was some."""
    notes = change.connection.execute(_OWN, {"invoice": invoice_id}).all()
    if not notes:
        return False
    due = change.connection.execute(_LEFT_OF, {"invoice": invoice_id}).scalar_one()
    spread = spread_credit([(note.id, note.open) for note in notes], [(invoice_id, due)])
    add(change, OWN, spread)
    return bool(spread)


def apply_oldest(
    change: Change, organization_id: int, *, past_due: bool, also: Collection[int] = ()
) -> set[int]:
    """Apply open credit to what is due, both the oldest first; answers the invoices that got some.

    Of those that are `past_due`, or of all. Those of `also` are looked at whatever their payment status says.
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
    dues = _by_currency(change.connection.execute(_DUE, asked), "due")
    spread = [
        part
        for currency, some in _by_currency(notes, "open").items()
        for part in spread_credit(some, dues[currency])
    ]
    add(change, OLDEST, spread)
    left = {note.id: note.open for note in notes}
    for note_id, _, amount in spread:
        left[note_id] -= amount
    _note_used_up(change, [note_id for note_id, rest in left.items() if not rest], used_up=True)
    return own | {invoice_id for _, invoice_id, _ in spread}


def take_back(change: Change, document_id: int) -> set[int]:
    """Take back what a note or an invoice that is void had applied; answers the invoices of it."""
    found = [tuple(row) for row in change.connection.execute(_APPLIED, {"document": document_id})]
    add(change, VOID, found)
    reopen(change, [note_id for note_id, _, _ in found if note_id != document_id])
    return {invoice_id for _, invoice_id, _ in found}


def reopen(change: Change, note_ids: Sequence[int]) -> None:
    """Have notes looked at again: credit came back to them."""
    _note_used_up(change, note_ids, used_up=False)


def add(change: Change, reason: str, rows: Iterable[tuple[int, int, Decimal]]) -> None:
    """Note how much of notes is applied to which invoices."""
    some = list(rows)
    if some:
        notes, invoices, amounts = (list(column) for column in zip(*some, strict=True))
        change.connection.execute(_ADD, {
            "notes": notes, "invoices": invoices, "amounts": amounts, "reason": reason,
            "actor": change.command.actor.scope, "now": change.now,
        })  # fmt: skip


def is_here(connection: Connection, document_id: int) -> bool:
    """Whether a document's money is not left to Stripe."""
    return bool(connection.execute(_IS_HERE, {"document": document_id}).scalar_one())


def _note_used_up(change: Change, note_ids: Sequence[int], *, used_up: bool) -> None:
    if note_ids:
        change.connection.execute(_USED_UP, {"notes": list(note_ids), "used_up": used_up})


def _by_currency(rows: Iterable[Any], amount: str) -> dict[str, list[Left]]:
    """Documents of each currency, in their order."""
    found = defaultdict[str, list[Left]](list)
    for row in rows:
        found[row.currency].append((row.id, getattr(row, amount)))
    return found
