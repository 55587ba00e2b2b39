"""Outcomes of hand-overs to Stripe, and Stripe's messages about them.

Messages may be repeated, late and in any order. Each states the amount settled so far, so the difference to
the recorded amount is recorded, within the rest to pay or the paid amount. Money that went back to the
customer is subtracted from the payments, and is due again.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text, update

from gateway.core.accounts.administration import Row
from gateway.errors import AdminRefusal, Conflict, NotFound
from gateway.features.stripe.handover import CANCELED, DONE, FAILED, WAITING, CollectionStatus
from persistence.billing import charges, payments
from persistence.billing.invoice_heads import INVOICE_HEADS, money, rest_of
from persistence.entity import Entity, EntityWrite, id_in, lock
from persistence.stripe.outbox import REFERENCE, tell_final
from persistence.tables import handover, handover_event, payment

# The reference of money that Stripe gave back without a credit note of ours.
RETURNED = f"{REFERENCE}returned:"

_FOUND = text("""
SELECT id, organization_id, invoice_id FROM handover
 WHERE kind = 'invoice' AND (remote = :remote OR key = cast(:key AS uuid)) ORDER BY id LIMIT 1""")
_STANDS = text("SELECT status, payment_status, currency, total_amount FROM invoice WHERE id = :id")
_RECORDED = text("""
SELECT coalesce(sum(amount), 0) FROM payment
 WHERE invoice_id = :id AND amount > 0 AND (
       starts_with(reference, :prefix)
       OR EXISTS (SELECT FROM handover WHERE invoice_id = :id AND kind = 'paid'))""")
# Money that was subtracted after Stripe had collected it; and the part that Stripe gave back by itself.
_GIVEN_BACK = text("""
SELECT coalesce(-sum(b.amount), 0) AS given,
       coalesce(-sum(b.amount) FILTER (WHERE starts_with(b.reference, :own)), 0) AS own
  FROM payment AS b JOIN payment AS p ON p.id = b.corrects_id
 WHERE b.invoice_id = :id AND starts_with(p.reference, :prefix)""")
_BEHIND = text("""
UPDATE handover SET state = 'canceled', done_at = :now
 WHERE about_id = :about AND id > :id AND state IN ('waiting', 'failed')""")
_LEFT = select(payment.c.id, payment.c.amount).order_by(payment.c.id.desc())


def ask_collection(change: EntityWrite) -> Row:
    """Queue the command's invoice or note for Stripe.

    It became final before its organization was a Stripe customer. Raise `Conflict` if it cannot be handed
    over.
    """
    row = payments.held(change)
    if row["kind"] == "credit_note" and row["corrects_id"] is None and row["status"] == "finalized":
        _require_whole(change, change.row_id)
    if not tell_final(change.connection, [change.row_id]):
        known = select(handover.c.id, handover.c.state).where(
            handover.c.invoice_id == change.row_id, handover.c.kind == row["kind"]
        )
        there = change.connection.execute(known).first()
        if there is not None:
            raise Conflict(f"It is hand-over {there.id}, which is {there.state}.")
        if row["status"] != "finalized":
            raise Conflict(f"The invoice is {row['status']}; only a finalized one is handed over.")
        if row["corrects_id"] is not None:
            raise Conflict("The invoice it gives back is not handed over; hand that over first.")
        raise Conflict("Its organization has no stripe_customer: set that first.")
    return change.fetch()


def retry(change: EntityWrite) -> Row:
    """Try a failed or canceled hand-over of a document to Stripe again.

    If it has created nothing yet, it uses the organization's current Stripe customer.
    """
    row = lock(change)
    if row["state"] not in {FAILED, CANCELED}:
        raise Conflict(f"The hand-over is {row['state']}; only a failed or canceled one is tried again.")
    if row["state"] == CANCELED and (row["kind"], row["about_id"]) == ("credit_note", row["invoice_id"]):
        _require_whole(change, id_in(row, "invoice_id"))
    change.connection.execute(_RETRY, {"id": change.row_id})
    return change.fetch()


_RETRY = text("""
UPDATE handover AS h
   SET state = 'waiting', attempts = 0, version = version + 1, next_attempt_at = now(), error = NULL,
       done_at = NULL, remote = NULL,
       customer = CASE WHEN h.remote IS NULL THEN coalesce(o.stripe_customer, h.customer)
                       ELSE h.customer END
  FROM organization AS o WHERE h.id = :id AND o.id = h.organization_id""")


def cancel(change: EntityWrite) -> Row:
    """Cancel a hand-over of a document to Stripe that has failed or not begun.

    With an invoice, the hand-overs that wait for it are canceled too.
    """
    row = lock(change)
    if row["state"] != FAILED and (row["state"] != WAITING or row["attempts"]):
        raise Conflict(f"The hand-over is {row['state']}; only a failed one, or one not begun, is canceled.")
    _end(change, {"state": CANCELED})
    if row["kind"] == "invoice":
        here = {"about": row["about_id"], "id": change.row_id, "now": change.now}
        change.connection.execute(_BEHIND, here)
    return change.fetch()


def ended(change: EntityWrite) -> Row:
    """Store the outcome of the command's attempt; `Conflict` if another attempt has begun since."""
    values = change.command.values
    # Writers of money lock the organization first, then its rows.
    charges.hold(change.connection, id_in(change.fetch(), "organization_id"))
    row = lock(change)
    if row["state"] != WAITING or row["attempts"] != values["attempt"]:
        raise Conflict("Another attempt has begun since.")
    _end(change, {name: value for name, value in values.items() if name not in {"attempt", "credited"}})
    credited = Decimal(str(values["credited"]))
    if row["kind"] == "credit_note" and values["state"] == DONE:
        note_id, about_id, remote = id_in(row, "invoice_id"), id_in(row, "about_id"), str(values["remote"])
        if about_id == note_id:
            _record_on_balance(change, row, f"{REFERENCE}{remote}")
        elif credited > 0:
            # Credit for a paid part went to the customer's balance: it is subtracted from the invoice's
            # payments.
            _take_out(
                change, about_id, min(credited, -rest_of(change.connection, note_id)), f"{REFERENCE}{remote}"
            )
    return change.fetch()


def take(change: EntityWrite) -> Row:
    """Apply a message about an invoice, once; `NotFound` if the invoice was not handed over."""
    value = change.command.values["told"]
    assert isinstance(value, CollectionStatus)
    here = {"remote": value.remote_id, "key": uuid_of(value.key)}
    result = change.connection.execute(_FOUND, here).first()
    if result is None:
        raise NotFound
    charges.hold(change.connection, result.organization_id)
    known = select(handover_event.c.id).where(handover_event.c.name == value.name)
    event = change.connection.execute(known).scalar()
    if event is None:
        amount, remains = _collected(change, value, result.invoice_id)
        made = insert(handover_event).values(
            organization_id=result.organization_id, invoice_id=result.invoice_id, handover_id=result.id,
            name=value.name, kind=value.kind, amount=amount, currency=value.currency, remains=remains,
            created_at=change.now,
        )  # fmt: skip
        event = change.connection.execute(made.returning(handover_event.c.id)).scalar_one()
    return change.fetch(event)


def _collected(change: EntityWrite, status: CollectionStatus, invoice_id: int) -> tuple[Decimal, str | None]:
    """Apply Stripe's message `status`; return the money recorded, and a message for a person or None."""
    nothing = Decimal(0)
    stands = change.connection.execute(_STANDS, {"id": invoice_id}).one()
    if status.void:
        here = f"It was made void there; here it is {stands.status}."
        return nothing, None if stands.status == "void" else here
    if status.given_up and stands.payment_status != "uncollectible":
        return nothing, _run_command(change, payments.give_up, invoice_id, {})
    if status.settled is None and status.given_back is None:
        return nothing, None
    if status.currency != stands.currency:
        came = f"{status.currency} {(status.settled or nothing).normalize():f} came in"
        return nothing, f"{came} for an invoice in {stands.currency}."
    recorded, more = _come_in(change, status, invoice_id, stands)
    gone, less = _gone_back(change, status, invoice_id)
    return recorded - gone, " ".join(filter(None, (more, less))) or None


def _come_in(
    change: EntityWrite, status: CollectionStatus, invoice_id: int, stands: Any
) -> tuple[Decimal, str | None]:
    """Record money that Stripe collected for an invoice and that is not recorded yet; return the amount.

    Also return a message for a person if more came in than was due, or if it was refused.
    """
    nothing = Decimal(0)
    before = change.connection.execute(_RECORDED, {"id": invoice_id, "prefix": REFERENCE}).scalar_one()
    new = (status.settled or nothing) - before
    if new <= 0:
        return nothing, None
    rest = max(nothing, rest_of(change.connection, invoice_id)) if stands.status == "finalized" else nothing
    amount, beyond = min(new, rest), max(nothing, new - rest)
    if amount:
        values = {"amount": amount, "reference": f"{REFERENCE}{status.name}"}
        if refused := _run_command(change, payments.record, invoice_id, values):
            return nothing, refused
    more = f"{status.currency} {beyond.normalize():f} more came in than was left to pay."
    return amount, more if beyond else None


def _gone_back(change: EntityWrite, status: CollectionStatus, invoice_id: int) -> tuple[Decimal, str | None]:
    """Subtract what Stripe gave back by `status`, once; return the sum, and a message for a person or None."""
    nothing = Decimal(0)
    if status.given_back is None:
        return nothing, None
    here = {"id": invoice_id, "prefix": REFERENCE, "own": RETURNED}
    before = change.connection.execute(_GIVEN_BACK, here).one()
    wanted = max(nothing, status.given_back - before.given)
    gone = _take_out(change, invoice_id, wanted, f"{RETURNED}{status.name}", of=REFERENCE)
    return gone, _remains_of(status, before.own + gone, wanted - gone)


def _remains_of(status: CollectionStatus, own: Decimal, beyond: Decimal) -> str | None:
    """Return a message for a person if the money that Stripe gave back differs from the reversed payments.

    Else return None. `own` is the sum that was reversed, `beyond` the part that no payment covers.
    """
    assert status.given_back is not None

    def render(amount: Decimal) -> str:
        return f"{status.currency} {amount.normalize():f}"

    if beyond:
        return f"{render(beyond)} more went back to the customer than is left of its payments."
    if own > status.given_back:
        return f"{render(own - status.given_back)} that had gone back came in again: record it as a payment."
    if own < status.given_back:
        other = render(status.given_back - own)
        return f"{other} of what went back had left the payments before: is it on the customer's balance too?"
    return None


def _run_command(change: EntityWrite, verb: Any, invoice_id: int, values: Row) -> str | None:
    """Run an invoice command that a person may run; return the reason if the command is refused."""
    command = replace(change.command, resource="invoices", id=invoice_id, values=values)
    try:
        with change.connection.begin_nested():
            verb(replace(change, subject=INVOICE_HEADS, command=command, before=None))
    except AdminRefusal as refused:
        return refused.message
    return None


def _record_on_balance(change: EntityWrite, row: Row, reference: str) -> None:
    """Record that a note without an invoice went to the customer's balance at Stripe: it is used up here."""
    note_id = id_in(row, "invoice_id")
    stands = change.connection.execute(_STANDS, {"id": note_id}).one()
    rest = rest_of(change.connection, note_id)
    if stands.status == "finalized" and rest:
        change.connection.execute(insert(payment).values(
            organization_id=row["organization_id"], invoice_id=note_id, amount=rest, currency=stands.currency,
            reference=reference, created_at=change.now,
        ))  # fmt: skip


def _require_whole(change: EntityWrite, note_id: int) -> None:
    """Raise `Conflict` if credit of a note was used here: Stripe would credit the whole note again."""
    total = change.connection.execute(_STANDS, {"id": note_id}).one().total_amount
    if rest_of(change.connection, note_id) != total:
        raise Conflict("Some of its credit is used here, and Stripe would give all of it.")


def _take_out(
    change: EntityWrite, invoice_id: int, amount: Decimal, reference: str, *, of: str = ""
) -> Decimal:
    """Reverse payments whose references begin with `of`, the last first, up to `amount`; return the sum."""
    left = amount
    paid = _LEFT.where(
        payment.c.invoice_id == invoice_id, payment.c.reference.startswith(of, autoescape=True)
    )
    for row in change.connection.execute(paid).all():
        if left <= 0:
            break
        back = replace(change, subject=payments.SUBJECT, before=None)
        there = Decimal(str(back.fetch(row.id)["amount_left"])) if row.amount > 0 else Decimal(0)
        if (part := min(left, there)) > 0:
            values = {"amount": part, "reference": f"{reference}:{row.id}"}
            back.command = replace(change.command, resource="payments", id=row.id, values=values)
            payments.reverse(back)
            left -= part
    return max(Decimal(0), amount) - max(Decimal(0), left)


def _end(change: EntityWrite, values: Row) -> None:
    ended_at = change.now if values["state"] in {DONE, CANCELED} else None
    kept = update(handover).where(handover.c.id == change.row_id)
    change.connection.execute(kept.values({**values, "done_at": ended_at}))


def uuid_of(key: str) -> UUID | None:
    try:
        return UUID(key)
    except ValueError:
        return None


SUBJECT = Entity(handover, verbs={"retry": retry, "cancel": cancel, "ended": ended})
EVENTS = Entity(
    handover_event,
    source=select(
        *(column for column in handover_event.c if column.name != "amount"),
        money(handover_event.c.amount, handover_event.c.currency).label("amount"),
    ),
    verbs={"take": take},
)
