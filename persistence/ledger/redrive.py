"""A dead letter put back where it belongs: checked like any entry, stored by the same code, once.

It runs inside the transaction that resolves the dead letter, under the flusher's lock of the
partition, so either the row is there and the dead letter is closed, or neither.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError

from gateway.core.accounts.administration import Row
from gateway.core.accounts.ledger import Event, EventKind, MalformedEvent, decode, moved
from gateway.core.accounts.outbox import control_id
from gateway.errors import Conflict, Unprocessable
from persistence.billing.allocations import allocate_late
from persistence.complaint import complaint
from persistence.keeper.request_rows import SINCE_BEGAN, times_of
from persistence.ledger import accounts, rows, statements
from persistence.ledger.attribution import Users
from persistence.ledger.blocking import blocking
from persistence.ledger.checkpoints import count_again
from persistence.ledger.copying import Copies, Unstorable
from persistence.ledger.guard import CREDITS, UNKNOWN, USAGE, Placed, event_of, movements, storable
from persistence.ledger.refill import Movement, misfit
from persistence.ledger.rollup import Moves, add_up

# A request's call, unless nothing was charged for it; and what is to be charged for it.
_CALLED = f"""
SELECT 1 FROM call WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN} AND NOT refused
   AND (reason IS DISTINCT FROM 'reclaimed' OR tokens <> 0 OR cost > 0)
UNION ALL SELECT 1 FROM control_write WHERE id = %(request)s"""  # noqa: S608  # our own words

SEQS = {"tenant": "token_seq", "credits": "credit_seq", "spend": "spend_seq"}


def redrive(connection: Connection, letter: Row, sent: Row, partition_of: Callable[[int], int]) -> None:
    """Store what a dead letter says, as corrected, unless it was stored already.

    `Conflict` where it does not fit its account any more, `Unprocessable` where it still cannot
    be a row. The flusher's lock of the partition must be held.
    """
    event = corrected(letter, sent)
    plain = blocking(connection)
    partition = int(str(letter["partition"]))
    if partition_of(event.organization_id) != partition:
        raise Conflict(f"Organization {event.organization_id} does not live in partition {partition}.")
    placed: Placed = (partition, (str(letter["entry_id"]).encode(), b"", event))
    if not storable(event):
        raise Unprocessable("Its numbers are out of range: correct them.")
    heads = accounts.stand(plain, {partition: [placed[1]]})
    parts = movements(event, heads)
    if not parts:
        raise Conflict("It moves no account: there is nothing to store. Resolve it instead.")
    for head, _ in parts:
        if head.stopped == UNKNOWN or head.organization_id != event.organization_id:
            account = head.account.replace(":", " ")
            raise Conflict(f"There is no {account} of organization {event.organization_id}.")
    if accounts.count_stored(plain, placed) == len(parts):
        return
    own = {head.account: letter[SEQS[head.account.partition(":")[0]]] for head, _ in parts}
    for (head, seq), movement in zip(parts, _movements(event), strict=True):
        around, drifts = accounts.neighbours(plain, head.account, seq)
        why = misfit(movement, head.seq, around, drifts, listed=own[head.account] == seq)
        if why is not None:
            raise Conflict(f"It does not fit: {why}.")
    _refuse_twice(plain, event)
    _store(plain, placed, {head.account: head.seq for head, _ in parts})
    count_again(connection, [(head.account, seq) for head, seq in parts])
    if event.flags & CREDITS:
        allocate_late(connection, event.organization_id, event.credit_seq)


def refuse_charged(connection: Connection, request_id: str) -> None:
    """`Conflict` where a request that settles late is charged already, or about to be."""
    plain = blocking(connection)
    _refuse_moved(plain, request_id)
    if plain.execute(_CALLED, {"request": request_id, **times_of([request_id])}).fetchone():
        raise Conflict(f"Request {request_id} is charged already: resolve it instead.")


def corrected(letter: Row, sent: Row) -> Event:
    """What a dead letter says with the corrections sent: a whole entry, or some of its fields."""
    raw = letter["raw"]
    assert isinstance(raw, bytes)
    if sent.get("raw") is not None:
        try:
            raw = base64.b64decode(str(sent["raw"]), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Unprocessable(errors=(("raw", "is not base64"),)) from error
    try:
        event = decode(raw)
        EventKind(event.kind)
    except (MalformedEvent, ValueError) as error:
        field = "raw" if sent.get("raw") is not None else "changes"
        raise Unprocessable(
            f"The entry cannot be read ({error}): send it whole, as `raw`.", ((field, "cannot be read"),)
        ) from error
    changes = sent.get("changes")
    facts: dict[str, Any] = dict(changes) if isinstance(changes, Mapping) else {}
    if "metadata" in facts:
        facts["metadata"] = json.dumps(facts["metadata"]).encode() if facts["metadata"] is not None else b""
    event = replace(event, **facts)
    for name in SEQS.values():
        named = letter[name]
        if named is not None and named != getattr(event, "seq" if name == "token_seq" else name):
            raise Conflict(f"The dead letter's {name} is {named}: a correction cannot move it.")
    return event


def finish_control_write(connection: Connection, letter: Row) -> None:
    """Let the control write a dead letter comes from be done: it is in force, and not to be applied again."""
    raw = letter["raw"]
    assert isinstance(raw, bytes)
    try:
        id_ = control_id(decode(raw))
    except MalformedEvent:
        return
    if rows.is_uuid(id_):
        accounts.finish(blocking(connection), [id_], ())


def _movements(event: Event) -> list[Movement]:
    """The movements an entry makes, in the order of `guard.movements`."""
    month = accounts.month_of(event.at_ms // 1000)
    return [
        Movement(one.account, one.seq, event.epoch, one.delta, one.balance, month if part == USAGE else 0)
        for part, one in moved(event).items()
    ]


def _refuse_twice(connection: psycopg.Connection[Any], event: Event) -> None:
    """A request is charged once: another movement may have charged it meanwhile."""
    if event.kind != EventKind.CONSUME or not rows.is_uuid(event.source) or rows.corrects(event.metadata):
        return
    _refuse_moved(connection, event.source)


def _refuse_moved(connection: psycopg.Connection[Any], request_id: str) -> None:
    values = {"request": request_id, **times_of([request_id])}
    for account, seq in connection.execute(statements.CHARGED, values):
        raise Conflict(
            f"Request {request_id} is charged already, by movement {seq} of {account}: resolve it instead."
        )


def _store(connection: psycopg.Connection[Any], placed: Placed, seqs: Mapping[str, int]) -> None:
    event = event_of(placed)
    try:
        users = Users().resolve(connection, [placed])
        Copies([placed]).write(connection, users)
        moves = _heads(add_up([placed]), event, seqs)
        accounts.move(connection, moves)
        id_ = control_id(event)
        accounts.finish(connection, [id_] if rows.is_uuid(id_) else [], moves.resets)
    except Unstorable as error:
        raise Unprocessable(f"It still cannot be stored: {error.reason}.") from error
    except (psycopg.DataError, psycopg.IntegrityError, DataError, IntegrityError) as error:
        raise Unprocessable(f"PostgreSQL still refuses it: {complaint(error)}.") from error


def _heads(moves: Moves, event: Event, seqs: Mapping[str, int]) -> Moves:
    """Only an account that nothing moved since stands where this leaves it."""
    if event.seq < seqs.get(f"tenant:{event.tenant_id}", 0):
        moves.quotas.clear()
        moves.resets.clear()
    if event.credit_seq < seqs.get(f"credits:{event.organization_id}", 0):
        moves.credits.clear()
    if event.spend_seq < seqs.get(f"spend:{event.organization_id}", 0):
        moves.spends.clear()
    return moves
