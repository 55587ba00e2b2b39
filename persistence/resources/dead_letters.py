"""Entries that could not become rows: listed, retried, or resolved with a reason.

A dead letter keeps its raw bytes for ever. Resolving one leaves its place a listed gap, which is on
file with its reason; driving it again fills the place, once.
"""

from __future__ import annotations

from sqlalchemy import func

from gateway.core.accounts.administration import Row
from gateway.errors import Conflict, Unprocessable
from persistence.ledger.redrive import corrected, finish_control_write, redrive
from persistence.subject import Change, Subject, alter, lock
from persistence.tables.operations import dead_letter


def drive_again(change: Change) -> Row:
    """`/redrive`: store it where it belongs, with the corrections sent."""
    letter = _open(change)
    if change.within not in {None, corrected(letter, change.command.values).organization_id}:
        raise Unprocessable(errors=(("raw", f"must be an entry of organization {change.within}"),))
    change.hold_flushes(letter["partition"])
    redrive(change.connection, letter, change.command.values, change.partition_of)
    return _close(change, "redriven", change.command.values.get("reason"))


def resolve(change: Change) -> Row:
    """`/resolve`: have it stay as it is, with a reason; it holds no invoice up any more."""
    letter = _open(change)
    finish_control_write(change.connection, letter)
    return _close(change, "resolved", change.command.values["reason"])


def _open(change: Change) -> Row:
    letter = lock(change)
    if letter["resolved_at"] is not None:
        raise Conflict(f"It was {letter['resolution']} at {letter['resolved_at']}.")
    return letter


def _close(change: Change, resolution: str, reason: object) -> Row:
    alter(
        change,
        {
            "resolved_at": func.now(),
            "resolution": resolution,
            "resolved_by": change.command.actor.scope,
            "resolved_reason": reason,
        },
    )
    return change.fetch()


_resolved = dead_letter.c.resolved_at.is_not(None)

SUBJECT = Subject(
    dead_letter,
    conditions={"resolved": lambda wanted: _resolved if wanted else ~_resolved},
    verbs={"redrive": drive_again, "resolve": resolve},
)
