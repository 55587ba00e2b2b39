"""Sessions of the console: digests only, bounded, over by themselves.

Beginning and end of a session are writes like any other, so both are in the audit log.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.core.accounts.administration import ConsoleSession, KnownPerson, Row
from gateway.core.issuers.sign_in import LIFE_MAX, VOUCHED
from gateway.core.issuers.sign_out import SignedOut
from persistence.resources import audit
from persistence.subject import Change, Subject, add
from persistence.tables.operations import console_session, told_sign_out
from persistence.tables.people import admin_token

SESSIONS_MAX = 1_000
# Of one person, or of those who hold one token: nobody ends the sessions of others by beginning many.
SESSIONS_EACH_MAX = 20
# How often a provider is asked whether a person still may come in.
ASKED_EACH = timedelta(seconds=30)

# Longer than such a word of a provider is believed.
TOLD_KEPT = timedelta(minutes=15)

_here, _told = console_session.c, told_sign_out.c
_PERSON = (_here.issuer, _here.identity, _here.person)
_IS_DUE = _here.renewal.is_not(None) & (_here.asked_at < func.now() - ASKED_EACH)


def find(connection: Connection, digest: str) -> ConsoleSession | None:
    """Find a session that is not over."""
    row = connection.execute(
        select(
            _here.id, _here.token_digest, _here.issuer, _here.identity, _here.person, _here.renewal,
            _here.id_token,
            _IS_DUE.label("is_due"),
        ).where(_here.digest == digest, _here.expires_at > func.now())
    ).first()  # fmt: skip
    if row is None:
        return None
    person = KnownPerson(row.issuer, row.identity, row.person) if row.person is not None else None
    return ConsoleSession(row.id, row.token_digest, person, row.renewal, row.id_token, is_due=row.is_due)


def ask(connection: Connection, session_id: int) -> bool:
    """Note that a provider is asked about a session now; False where somebody just did."""
    asked = update(console_session).where(_here.id == session_id, _IS_DUE).values(asked_at=func.now())
    return connection.execute(asked.returning(_here.id)).first() is not None


def keep_renewal(connection: Connection, session_id: int, renewal: str, *, vouched: bool) -> None:
    """Keep what is asked with next; who is `vouched` for goes on a while, until `LIFE_MAX` after it began."""
    ends = func.least(func.now() + VOUCHED, _here.created_at + LIFE_MAX) if vouched else _here.expires_at
    values = {"renewal": renewal, "expires_at": ends}
    connection.execute(update(console_session).where(_here.id == session_id).values(**values))


def create(change: Change) -> Row:
    """Begin a session; those that are over go, and the oldest where there are too many: first of its own."""
    row = change.fetch(add(change))
    latest = select(_here.id).order_by(_here.id.desc())
    own = latest.where(_of_same(row))
    for gone in (
        (_here.expires_at <= func.now()) | _here.id.in_(own.offset(SESSIONS_EACH_MAX)),
        _here.id.in_(latest.offset(SESSIONS_MAX)),
    ):
        change.connection.execute(delete(console_session).where(gone))
    return row


def end_told(connection: Connection, told: SignedOut, actor: str, request_id: str) -> bool:
    """End the sessions of whom a provider has signed out; False where it has said so before."""
    connection.execute(delete(told_sign_out).where(_told.created_at < func.now() - TOLD_KEPT))
    once = insert(told_sign_out).values(issuer=told.issuer, token_id=told.token_id)
    if connection.execute(once.on_conflict_do_nothing().returning(_told.token_id)).first() is None:
        return False
    ended = delete(console_session).where(_meant(told)).returning(_here.id, *_PERSON, _here.token_digest)
    gone = ended.cte("gone")
    of = gone.outerjoin(admin_token, admin_token.c.digest == gone.c.token_digest)
    owners = admin_token.c.id.label("admin_token_id"), admin_token.c.organization_id
    found = connection.execute(select(gone, *owners).select_from(of)).mappings()
    audit.keep(connection, [_ended(dict(row), actor, request_id) for row in found])
    return True


def _meant(told: SignedOut) -> ColumnElement[bool]:
    """Which sessions are ended: of a session of the provider's, or of all that an identity has.

    One of which the provider did not say which of its own it is, is ended with any of them.
    """
    meant = _here.issuer == told.issuer
    if told.identity:
        meant &= _here.identity == told.identity
    if not told.session:
        return meant
    same = _here.provider_session == told.session
    return meant & (same | _here.provider_session.is_(None) if told.identity else same)


def _ended(row: Row, actor: str, request_id: str) -> dict[str, object]:
    """What the audit log says of a session that a provider has ended."""
    owners = ("issuer", "identity", "person", "admin_token_id", "organization_id")
    return {
        "actor": actor, "action": "end", "resource": "console-sessions", "resource_id": str(row["id"]),
        "request_id": request_id, **{name: row[name] for name in owners},
    }  # fmt: skip


def _of_same(row: Row) -> ColumnElement[bool]:
    """Sessions of the same person, by whichever token; else of those who hold the same token."""
    if row["identity"] is None:
        return _here.identity.is_(None) & (_here.token_digest == row["token_digest"])
    return (_here.issuer == row["issuer"]) & (_here.identity == row["identity"])


def end(change: Change) -> Row:
    """End a session; ending it again changes nothing."""
    change.connection.execute(delete(console_session).where(console_session.c.id == change.row_id))
    return {"id": change.row_id}


SUBJECT = Subject(console_session, verbs={"create": create, "end": end})
