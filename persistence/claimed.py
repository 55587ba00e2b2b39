"""Credentials that are no secret: an issuer's subject stands for them, and each is claimed once."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, Text, cast, func, literal, select, update

from gateway.errors import Conflict, Forbidden
from persistence.subject import Change

DIGEST_CHARACTERS = 64
# How a digest begins that a revoked credential has once another one is its subject's: nothing has such a one.
GIVEN_UP = "0" * 40


def claim(change: Change, table: Table, noun: str, in_use: ColumnElement[bool] | None = None) -> None:
    """Refuse a subject to whoever might claim another organization's, and a second credential of it.

    Rows that are not `in_use` are there for the record alone. A revoked one makes room: it stays, and is
    nobody's. One that has expired does not, since its end may be moved.
    """
    values = change.command.values
    if values.get("issuer") is None:
        return
    if change.within is not None:
        raise Forbidden(f"Whose tokens stand for a {noun} is said by who is of all organizations.")
    # Under another pepper the same subject has another digest.
    same = (table.c.issuer == values["issuer"]) & (table.c.subject == values["subject"])
    if in_use is not None:
        same &= in_use
    given_up = func.lpad(cast(table.c.id, Text), DIGEST_CHARACTERS, literal("0"))
    revoked = table.c.revoked_at.is_not(None) & ~table.c.digest.startswith(GIVEN_UP)
    change.connection.execute(update(table).where(same & revoked).values(digest=given_up))
    there = select(table.c.id).where(
        (table.c.digest == values["digest"]) | (same & table.c.revoked_at.is_(None))
    )
    if change.connection.execute(there).first() is not None:
        raise Conflict(f"There is a {noun} of this subject: revoke it first.")
