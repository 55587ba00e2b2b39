"""Sessions of the console: digests only, bounded, over by themselves.

Beginning and end of a session are writes like any other, so both are in the audit log.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, delete, func, select, update

from gateway.core.accounts.administration import ConsoleSession, Row
from persistence.subject import Change, Subject, add
from persistence.tables.operations import console_session

SESSIONS_MAX = 1_000
# How often a provider is asked whether a person still may come in, and how long its word counts.
ASKED_EACH = timedelta(seconds=30)
VOUCHED = timedelta(hours=1)
LIFE_MAX = timedelta(hours=12)

_here = console_session.c
_IS_DUE = _here.renewal.is_not(None) & (_here.asked_at < func.now() - ASKED_EACH)


def find(connection: Connection, digest: str) -> ConsoleSession | None:
    """Find a session that is not over."""
    row = connection.execute(
        select(
            _here.id, _here.token_digest, _here.person, _here.issuer, _here.identity, _here.renewal,
            _IS_DUE.label("is_due"),
        ).where(_here.digest == digest, _here.expires_at > func.now())
    ).first()  # fmt: skip
    return ConsoleSession(*row) if row is not None else None


def ask(connection: Connection, session_id: int) -> bool:
    """Note that a provider is asked about a session now; False where somebody just did."""
    asked = update(console_session).where(_here.id == session_id, _IS_DUE).values(asked_at=func.now())
    return connection.execute(asked.returning(_here.id)).first() is not None


def prolong(connection: Connection, session_id: int, renewal: str) -> None:
    """Let a session go on for a while, until `LIFE_MAX` after it began."""
    ends = func.least(func.now() + VOUCHED, _here.created_at + LIFE_MAX)
    values = {"renewal": renewal, "expires_at": ends}
    connection.execute(update(console_session).where(_here.id == session_id).values(**values))


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
