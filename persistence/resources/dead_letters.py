"""Entries that could not become rows, and settlements of which nobody here knows whether they are rows.

They are listed, retried, or resolved with a reason. A dead letter keeps its raw bytes for ever. Resolving one
leaves its place a listed gap, which is on file with its reason; driving it again fills the place, once.
"""

from __future__ import annotations

import base64
from uuid import UUID

from sqlalchemy import func, text

from gateway.core.accounts.administration import Row
from gateway.core.accounts.holds import read_letter
from gateway.errors import Conflict, Unprocessable
from persistence.ledger.redrive import corrected, finish_control_write, redrive, refuse_charged
from persistence.resources.decided import decided, source, told
from persistence.subject import Change, Subject, alter, lock, write_of
from persistence.tables import dead_letter

_OWNER = text("SELECT id FROM organization WHERE id = :organization AND deleted_at IS NULL")


def drive_again(change: Change) -> Row:
    """`/redrive`: store it where it belongs, with the corrections sent."""
    letter = _open(change)
    if late := _late(letter):
        _charge_late(change, letter, *late)
        return _close(change, "redriven", change.command.values.get("reason"))
    if change.within not in {None, corrected(letter, change.command.values).organization_id}:
        raise Unprocessable(errors=(("raw", f"must be an entry of organization {change.within}"),))
    change.hold_flushes(letter["partition"])
    redrive(change.connection, letter, change.command.values, change.partition_of)
    return _close(change, "redriven", change.command.values.get("reason"))


def resolve(change: Change) -> Row:
    """`/resolve`: have it stay as it is, with a reason; it holds no invoice up any more."""
    letter = _open(change)
    if _late(letter) is None:
        finish_control_write(change.connection, letter)
    return _close(change, "resolved", change.command.values["reason"])


def _late(letter: Row) -> tuple[str, bytes] | None:
    raw = letter["raw"]
    assert isinstance(raw, bytes)
    return read_letter(raw)


def _charge_late(change: Change, letter: Row, request_id: str, record: bytes) -> None:
    """Have a settlement charged that no archive has, once by its request's id."""
    given = [name for name in ("changes", "raw") if change.command.values.get(name) is not None]
    if given:
        raise Unprocessable(errors=tuple((one, "must be left out: it is a settlement") for one in given))
    change.hold_flushes(letter["partition"])
    refuse_charged(change.connection, request_id)
    owner = change.connection.execute(_OWNER, {"organization": letter["organization_id"]}).scalar()
    if owner is None:
        raise Conflict(f"There is no organization {letter['organization_id']}: resolve it instead.")
    payload = {"record": base64.b64encode(record).decode()}
    change.intend_all(
        [write_of(change.partition_of(owner), f"organization:{owner}", "late", payload, UUID(request_id))]
    )


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
            **decided(change.command.actor, "resolved"),
            "resolved_reason": reason,
        },
    )
    return change.fetch()


_resolved = dead_letter.c.resolved_at.is_not(None)

SUBJECT = Subject(
    dead_letter,
    source=source(dead_letter, "resolved"),
    told=told("resolved"),
    conditions={"resolved": lambda wanted: _resolved if wanted else ~_resolved},
    verbs={"redrive": drive_again, "resolve": resolve},
)


def _asked(_: Change) -> Row:
    """Somebody asked for many decisions: each is audited by itself, that they were asked for is now."""
    return {"id": "many"}


MANY = Subject(dead_letter, verbs={"decide": _asked})
