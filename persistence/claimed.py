"""Credentials that are no secret: an issuer's subject stands for them, and each is claimed once."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, select

from gateway.errors import Conflict, Forbidden
from persistence.subject import Change


def check_claim(change: Change, table: Table, noun: str, in_use: ColumnElement[bool] | None = None) -> None:
    """Refuse a subject to whoever might claim another organization's, and a second credential of it.

    Rows that are not `in_use` are there for the record alone.
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
    there = select(table.c.id).where((table.c.digest == values["digest"]) | same)
    if change.connection.execute(there).first() is not None:
        raise Conflict(f"There is a {noun} of this subject: revoke and delete it first.")
