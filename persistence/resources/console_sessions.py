"""Sessions of the console: digests only, bounded, over by themselves.

Beginning and end of a session are writes like any other, so both are in the audit log.
"""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256

from sqlalchemy import ColumnElement, Connection, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.core.accounts.administration import ConsoleSession, KnownPerson, Row
from gateway.core.issuers.sign_in import LIFE_MAX, VOUCHED
from persistence.subject import Change, Subject, add
from persistence.tables import console_session, used_sign_in

# Those of all organizations together, of one organization, and of staff: nobody ends the sessions of others
# by beginning many.
SESSIONS_MAX = 10_000
SESSIONS_OF_ORGANIZATION_MAX = 200
SESSIONS_OF_STAFF_MAX = 1_000
# Of one person, or of those who hold one token.
SESSIONS_EACH_MAX = 20
# How often a provider is asked whether a person still may come in.
ASKED_EACH = timedelta(seconds=30)

# Longer than a sign-in may take.
USED_KEPT = timedelta(minutes=15)
# Sign-ins that are remembered; beyond these the oldest is forgotten, which its provider knows still.
USED_MAX = 10_000

_here, _used = console_session.c, used_sign_in.c
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
    """Begin a session; those that are over go, and the oldest of the same people where there are too many."""
    row = change.fetch(add(change))
    owner = row["organization_id"]
    latest = select(_here.id).order_by(_here.id.desc())
    own, share = latest.where(_of_same(row)), latest.where(_here.organization_id.is_not_distinct_from(owner))
    share_max = SESSIONS_OF_STAFF_MAX if owner is None else SESSIONS_OF_ORGANIZATION_MAX
    for gone in (
        (_here.expires_at <= func.now()) | _here.id.in_(own.offset(SESSIONS_EACH_MAX)),
        _here.id.in_(share.offset(share_max)),
    ):
        change.connection.execute(delete(console_session).where(gone))
    if owner is not None:
        _make_room(change.connection)
    return row


def _make_room(connection: Connection) -> None:
    """End what organizations have beyond their maximum: the oldest of the one that has most."""
    of_organization, many = _here.organization_id, func.count()
    there = select(many).where(of_organization.is_not(None))
    beyond = connection.execute(there).scalar_one() - SESSIONS_MAX
    if beyond <= 0:
        return
    greatest = (
        select(of_organization)
        .where(of_organization.is_not(None))
        .group_by(of_organization)
        .order_by(many.desc(), of_organization)
        .limit(1)
    )
    oldest = select(_here.id).where(of_organization == greatest.scalar_subquery()).order_by(_here.id)
    connection.execute(delete(console_session).where(_here.id.in_(oldest.limit(beyond))))


def use_sign_in(connection: Connection, state: str) -> bool:
    """Note that somebody came back from a sign-in; False where somebody did before."""
    latest = select(_used.state).order_by(_used.created_at.desc(), _used.state)
    over = (_used.created_at < func.now() - USED_KEPT) | _used.state.in_(latest.offset(USED_MAX))
    connection.execute(delete(used_sign_in).where(over))
    once = insert(used_sign_in).values(state=sha256(state.encode()).hexdigest()).on_conflict_do_nothing()
    return connection.execute(once.returning(_used.state)).first() is not None


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
