"""Credentials without a secret: the subject of an issuer's signed tokens, claimed by one credential only."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, Text, cast, func, literal, select, update

from gateway.errors import Conflict, Forbidden
from persistence.entity import EntityWrite

DIGEST_CHARACTERS = 64
# Prefix for the digest of a revoked credential whose subject was claimed again. No real digest begins so.
GIVEN_UP = "0" * 40


def claim_subject(
    change: EntityWrite, table: Table, noun: str, in_use: ColumnElement[bool] | None = None
) -> None:
    """Claim the subject of signed tokens, such as JWTs, for a new credential.

    Nothing is done for a credential with a secret of its own. Raise `Forbidden` for a caller of one
    organization, `Conflict` if another credential has the subject. A revoked credential releases its subject;
    an expired one does not, since its end may be moved. Rows outside of `in_use` do not count.
    """
    values = change.command.values
    if values.get("issuer") is None:
        return
    if change.within is not None:
        raise Forbidden(f"Whose tokens stand for a {noun} is said by who is of all organizations.")
    # The same subject has another digest under another pepper.
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
