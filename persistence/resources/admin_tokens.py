"""Named admin tokens: credentials of the Admin API, stored as digests only."""

from __future__ import annotations

from sqlalchemy import Connection, func, or_, select

from gateway.core.accounts.administration import Actor, Row
from persistence import crud
from persistence.subject import Change, Subject, alter, lock
from persistence.tables.people import admin_token, app_user

# Stands in the place of a deleted token's digest: no credential has such a one.
FORGOTTEN = "forgotten:"


def find(connection: Connection, digest: str) -> Actor | None:
    """Find a token that is neither expired nor revoked."""
    row = connection.execute(
        select(admin_token.c.id, admin_token.c.role, admin_token.c.user_id).where(
            admin_token.c.digest == digest,
            admin_token.c.revoked_at.is_(None),
            or_(admin_token.c.expires_at.is_(None), admin_token.c.expires_at > func.now()),
        )
    ).first()
    return None if row is None else Actor(f"token:{row.id}", row.role, row.id, row.user_id)


def delete(change: Change) -> Row:
    """Forget the token; the row stays for the audit log, which names it."""
    row = lock(change)
    revoked_at = func.coalesce(admin_token.c.revoked_at, func.now())
    alter(change, {"digest": f"{FORGOTTEN}{change.row_id}", "revoked_at": revoked_at})
    return row


SUBJECT = Subject(
    admin_token,
    source=select(admin_token).where(~admin_token.c.digest.startswith(FORGOTTEN)),
    verbs={**crud.VERBS, "revoke": crud.revoke, "delete": delete},
    refers={"user_id": app_user},
)
