"""Sessions of the console: stored as digests, limited in number, and expiring.

The start and end of a session are writes like any other, so both are in the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

from sqlalchemy import ColumnElement, Connection, func, select, update
from sqlalchemy import delete as delete_
from sqlalchemy.dialects.postgresql import insert as upsert

from gateway.core.accounts.administration import ConsoleSession, Row
from gateway.core.issuers import LIFE_MAX, VOUCHED, PersonIdentity
from persistence.entity import Entity, EntityWrite, add, id_in, live
from persistence.tables import caller_group, console_session, signed_in_user, used_sign_in

# Maxima of sessions: of all organizations together, of one organization, and of staff. Separate, so that
# nobody ends the sessions of others by beginning many.
SESSIONS_MAX = 10_000
SESSIONS_OF_ORGANIZATION_MAX = 200
SESSIONS_OF_STAFF_MAX = 1_000
# Maximum of one person, or of one token.
SESSIONS_EACH_MAX = 20
# How often a provider is asked whether a person may still sign in.
ASKED_EACH = timedelta(seconds=30)

# Longer than any sign-in takes.
USED_KEPT = timedelta(minutes=15)
# Completed sign-ins that are stored; the oldest are forgotten first, as their provider rejects them too.
USED_MAX = 10_000

_sessions_here, _used = console_session.c, used_sign_in.c
_IS_DUE = _sessions_here.renewal.is_not(None) & (_sessions_here.asked_at < func.now() - ASKED_EACH)


def find_session(connection: Connection, digest: str) -> ConsoleSession | None:
    row = connection.execute(
        select(
            _sessions_here.id, _sessions_here.token_digest, _sessions_here.issuer,
            _sessions_here.identity, _sessions_here.person, _sessions_here.renewal,
            _sessions_here.id_token, _IS_DUE.label("is_due"),
        ).where(_sessions_here.digest == digest, _sessions_here.expires_at > func.now())
    ).first()  # fmt: skip
    if row is None:
        return None
    person = PersonIdentity(row.issuer, row.identity, row.person) if row.person is not None else None
    return ConsoleSession(row.id, row.token_digest, person, row.renewal, row.id_token, is_due=row.is_due)


def ask_session(connection: Connection, session_id: int) -> bool:
    """Mark a console session as being confirmed by its identity provider now; return False if not due."""
    asked = (
        update(console_session).where(_sessions_here.id == session_id, _IS_DUE).values(asked_at=func.now())
    )
    return connection.execute(asked.returning(_sessions_here.id)).first() is not None


def keep_renewal(connection: Connection, session_id: int, renewal: str, *, vouched: bool) -> None:
    """Store a session's next refresh token; a `vouched` session is extended, at most to `LIFE_MAX` in all."""
    ends = (
        func.least(func.now() + VOUCHED, _sessions_here.created_at + LIFE_MAX)
        if vouched
        else _sessions_here.expires_at
    )
    values = {"renewal": renewal, "expires_at": ends}
    connection.execute(update(console_session).where(_sessions_here.id == session_id).values(**values))


def create_session(change: EntityWrite) -> Row:
    """Create a session, and delete expired ones and the oldest beyond the maxima.

    The groups that its sign-in named are those of its user from now on.
    """
    values = dict(change.command.values)
    user, groups = values.pop("user", None), values.pop("groups", None)
    change.command = replace(change.command, values=values)
    if isinstance(groups, tuple):
        _note_groups(change, id_in(values, "organization_id"), str(user), groups)
    row = change.fetch(add(change))
    owner = row["organization_id"]
    latest = select(_sessions_here.id).order_by(_sessions_here.id.desc())
    own, share = (
        latest.where(_same_person(row)),
        latest.where(_sessions_here.organization_id.is_not_distinct_from(owner)),
    )
    share_max = SESSIONS_OF_STAFF_MAX if owner is None else SESSIONS_OF_ORGANIZATION_MAX
    for gone in (
        (_sessions_here.expires_at <= func.now()) | _sessions_here.id.in_(own.offset(SESSIONS_EACH_MAX)),
        _sessions_here.id.in_(share.offset(share_max)),
    ):
        change.connection.execute(delete_(console_session).where(gone))
    if owner is not None:
        _make_room(change.connection)
    return row


def _note_groups(change: EntityWrite, organization_id: int, user: str, groups: Sequence[str]) -> None:
    """Store the groups that a user's sign-in named, and define the organization again if that changes its groups."""
    connection, here, group_columns = change.connection, signed_in_user.c, caller_group.c
    own = (here.organization_id == organization_id, here.name == user)
    before = connection.scalar(select(here.claims).where(*own).with_for_update()) or []
    if changed := set(before) ^ set(groups):
        connection.execute(delete_(signed_in_user).where(*own))
        if groups:
            values = {"organization_id": organization_id, "name": user, "claims": list(groups)}
            connection.execute(upsert(signed_in_user).values(values).on_conflict_do_nothing())
        claiming = live(caller_group).where(
            group_columns.organization_id == organization_id, group_columns.claim.in_(changed)
        )
        if connection.execute(claiming.limit(1)).first() is not None:
            change.define(f"organization:{organization_id}", organization_id)


def _make_room(connection: Connection) -> None:
    """End console sessions beyond `SESSIONS_MAX`: the oldest of the organization that has the most."""
    of_organization, many = _sessions_here.organization_id, func.count()
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
    oldest = (
        select(_sessions_here.id)
        .where(of_organization == greatest.scalar_subquery())
        .order_by(_sessions_here.id)
    )
    connection.execute(delete_(console_session).where(_sessions_here.id.in_(oldest.limit(beyond))))


def use_sign_in(connection: Connection, state: str) -> bool:
    """Mark the `state` of a sign-in as used; return False if it was used before."""
    latest = select(_used.state).order_by(_used.created_at.desc(), _used.state)
    over = (_used.created_at < func.now() - USED_KEPT) | _used.state.in_(latest.offset(USED_MAX))
    connection.execute(delete_(used_sign_in).where(over))
    once = upsert(used_sign_in).values(state=sha256(state.encode()).hexdigest()).on_conflict_do_nothing()
    return connection.execute(once.returning(_used.state)).first() is not None


def _same_person(row: Row) -> ColumnElement[bool]:
    """Return the SQL condition for console sessions of the same person as `row`.

    If no person is known, it is for sessions of the same token.
    """
    if row["identity"] is None:
        return _sessions_here.identity.is_(None) & (_sessions_here.token_digest == row["token_digest"])
    return (_sessions_here.issuer == row["issuer"]) & (_sessions_here.identity == row["identity"])


def end(change: EntityWrite) -> Row:
    """End a session; ending it again changes nothing."""
    change.connection.execute(delete_(console_session).where(console_session.c.id == change.row_id))
    return {"id": change.row_id}


SESSION_SUBJECT = Entity(console_session, verbs={"create": create_session, "end": end})
