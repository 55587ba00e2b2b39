"""Named admin tokens: credentials of the Admin API, stored as digests only."""

from __future__ import annotations

from sqlalchemy import Connection, func, or_, select, update

from gateway.core.accounts.administration import Row, StaffToken
from persistence import crud
from persistence.subject import Change, Subject, equals, fetch, lock
from persistence.tables.people import admin_token, app_user

# Stands in the place of a deleted token's digest: no credential has such a one.
FORGOTTEN = "forgotten:"


def find(connection: Connection, digest: str) -> StaffToken | None:
    """Find a token that is neither expired nor revoked."""
    row = connection.execute(
        select(admin_token.c.id, admin_token.c.role, admin_token.c.user_id).where(
            admin_token.c.digest == digest,
            admin_token.c.revoked_at.is_(None),
            or_(admin_token.c.expires_at.is_(None), admin_token.c.expires_at > func.now()),
        )
    ).first()
    return StaffToken(row.id, row.role, row.user_id) if row is not None else None


def revoke(change: Change) -> Row:
    """Refuse the token for ever; revoking again keeps the first time."""
    lock(change, SUBJECT, admin_token)
    change.connection.execute(
        update(admin_token)
        .where(admin_token.c.id == change.row_id)
        .values(revoked_at=func.coalesce(admin_token.c.revoked_at, func.now()))
    )
    return fetch(change.connection, SUBJECT, change.row_id)


def delete(change: Change) -> Row:
    """Forget the token; the row stays for the audit log, which names it."""
    row = lock(change, SUBJECT, admin_token)
    change.connection.execute(
        update(admin_token)
        .where(admin_token.c.id == change.row_id)
        .values(
            digest=f"{FORGOTTEN}{change.row_id}",
            revoked_at=func.coalesce(admin_token.c.revoked_at, func.now()),
        )
    )
    return row


SUBJECT: Subject = Subject(
    source=select(admin_token).where(~admin_token.c.digest.startswith(FORGOTTEN)),
    id=admin_token.c.id,
    time=admin_token.c.created_at,
    order=(("id", admin_token.c.id),),
    filters={"user_id": equals(admin_token.c.user_id), "role": equals(admin_token.c.role)},
    verbs={
        **crud.verbs(lambda: SUBJECT, admin_token, refers={"user_id": app_user}),
        "revoke": revoke,
        "delete": delete,
    },
)
