"""Sessions of the console: digests only, bounded, over by themselves.

Beginning and end of a session are writes like any other, so both are in the audit log.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select

from gateway.core.accounts.administration import ConsoleSession, Row
from persistence.subject import Change, Subject, add
from persistence.tables.operations import console_session

SESSIONS_MAX = 1_000


def find(connection: Connection, digest: str) -> ConsoleSession | None:
    """Find a session that is not over."""
    row = connection.execute(
        select(console_session.c.id, console_session.c.token_digest, console_session.c.person).where(
            console_session.c.digest == digest, console_session.c.expires_at > func.now()
        )
    ).first()
    return ConsoleSession(row.id, row.token_digest, row.person) if row is not None else None


def create(change: Change) -> Row:
    """Begin a session; those that are over go, and the oldest where there are too many."""
    row = change.fetch(add(change))
    surplus = select(console_session.c.id).order_by(console_session.c.id.desc()).offset(SESSIONS_MAX)
    change.connection.execute(
        delete(console_session).where(
            (console_session.c.expires_at <= func.now()) | console_session.c.id.in_(surplus)
        )
    )
    return row


def end(change: Change) -> Row:
    """End a session; ending it again changes nothing."""
    change.connection.execute(delete(console_session).where(console_session.c.id == change.row_id))
    return {"id": change.row_id}


SUBJECT = Subject(console_session, verbs={"create": create, "end": end})
