"""Sign-ins of agents: devices that wait for a person's approval, and the outcome. No code or token is stored.

Codes and tokens are derived from a row's seed and the pepper, so neither the row nor the pepper alone reveals
one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from sqlalchemy import Connection, case, delete, func, insert, or_, select, update
from sqlalchemy.engine import RowMapping

from gateway.core.issuers import LIFE_MAX
from persistence.tables import admin_token, agent_sign_in, console_session

SEED_BYTES = 32
# Devices that ask at once, and those of one sender. Where there are as many, the oldest makes room whose code
# nobody has typed: a code that a person has typed keeps its place.
ASKING_MAX, ASKING_EACH_MAX = 1_000, 100
OVER_MAX, DUE_MAX = 100, 8
ASKED, APPROVED, DENIED, GIVEN = "asked", "approved", "denied", "given"

_here, _token = agent_sign_in.c, admin_token.c
_is_live = _here.expires_at > func.now()
_asking = (_here.state == ASKED) & _is_live


def begin(
    connection: Connection, user_code: str, *, agent: str, site: str, lasts_s: int, most: int, each: int
) -> RowMapping | None:
    """Store a device's sign-in under the digest of its user code; return None if no room can be made.

    If this `site` has `each` sign-ins, or all sites together have `most`, the oldest sign-in whose code
    nobody typed is deleted: of this site, or else of the site with the most untyped codes. The sign-in
    expires after `lasts_s` seconds.
    """
    connection.execute(delete(agent_sign_in).where(_here.state.in_((ASKED, DENIED)), ~_is_live))
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("agent_sign_in"))))
    untyped = func.count().filter(_here.asked_at.is_(None))
    many = select(_here.site, func.count(), untyped).where(_here.state == ASKED).group_by(_here.site)
    sites = connection.execute(many.order_by(untyped.desc())).all()
    is_crowded = any(counted_site == site and count >= each for counted_site, count, _ in sites)
    is_full = is_crowded or sum(count for _, count, _ in sites) >= most
    if is_full and not _forget_oldest(connection, site if is_crowded else sites[0][0]):
        return None
    row = {"seed": secrets.token_hex(SEED_BYTES), "user_code": user_code, "agent": agent, "site": site}
    ends = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, lasts_s)
    kept = insert(agent_sign_in).values(**row, expires_at=ends).returning(agent_sign_in)
    return connection.execute(kept).mappings().one()


def _forget_oldest(connection: Connection, site: str) -> bool:
    """Delete a site's oldest sign-in whose code nobody has typed; return whether one existed."""
    oldest = select(_here.id).where(_here.state == ASKED, _here.site == site, _here.asked_at.is_(None))
    forgotten = delete(agent_sign_in).where(_here.id == oldest.order_by(_here.id).limit(1).scalar_subquery())
    return connection.execute(forgotten.returning(_here.id)).first() is not None


def asking(connection: Connection, user_codes: Sequence[str]) -> RowMapping | None:
    """Return the pending sign-in with one of these digests of user codes; None if none has.

    A signed-in person has typed that code, so `asked_at` is set: the sign-in is no longer deleted to make
    room.
    """
    typed = update(agent_sign_in).where(_here.user_code.in_(user_codes), _asking)
    return connection.execute(typed.values(asked_at=func.now()).returning(agent_sign_in)).mappings().first()


def decide(connection: Connection, row_id: int, state: str, **values: object) -> bool:
    """Store the decision on a pending sign-in: its new `state` and other columns (`values`).

    Return False if the sign-in was decided before, or has expired.
    """
    said = update(agent_sign_in).where(_here.id == row_id, _asking).values(state=state, **values)
    return connection.execute(said.returning(_here.id)).first() is not None


def find(connection: Connection, row_id: int) -> RowMapping | None:
    """Return an unexpired sign-in with the digest of its person's admin token; None if there is none.

    `age_s` is the number of seconds since its refresh token was last exchanged.
    """
    age = func.extract("epoch", func.now() - _here.renewed_at).label("age_s")
    found = (
        select(agent_sign_in, _token.digest.label("token_digest"), age)
        .outerjoin(admin_token, _token.id == _here.token_id)
        .where(_here.id == row_id, _is_live)
    )
    return connection.execute(found).mappings().first()


def of_key(connection: Connection, api_key_id: int) -> RowMapping | None:
    """Return the sign-in whose current API key has the id `api_key_id`; None if there is none."""
    return connection.execute(select(agent_sign_in).where(_here.api_key_id == api_key_id)).mappings().first()


def give(connection: Connection, row_id: int) -> bool:
    """Mark an approved device code as used, and extend its sign-in to the life of a console session.

    Return False if the code was used before.
    """
    used = update(agent_sign_in).where(_here.id == row_id, _here.state == APPROVED)
    given = used.values(state=GIVEN, expires_at=func.now() + LIFE_MAX)
    return connection.execute(given.returning(_here.id)).first() is not None


def renew(connection: Connection, row_id: int, generation: int, api_key_id: int) -> None:
    mine = update(agent_sign_in).where(_here.id == row_id, _here.generation == generation)
    connection.execute(
        mine.values(
            generation=generation + 1, earlier_key_id=_here.api_key_id, api_key_id=api_key_id,
            renewed_at=func.now(),
        )
    )  # fmt: skip


def over(connection: Connection) -> Sequence[RowMapping]:
    """Return some sign-ins with keys to revoke: they, or the admin token of their person, have ended."""
    has_ended = or_(
        _token.id.is_(None), _token.revoked_at.is_not(None), _token.expires_at <= func.now(),
        _token.digest.startswith("forgotten:"),
    )  # fmt: skip
    found = (
        select(_here.id, _here.api_key_id, _here.earlier_key_id)
        .outerjoin(admin_token, _token.id == _here.token_id)
        .where(_here.state.in_((APPROVED, GIVEN)), case((_is_live, has_ended), else_=True))
        .order_by(_here.id)
        .limit(OVER_MAX)
    )
    return connection.execute(found).mappings().all()


def due(connection: Connection, each_s: float) -> Sequence[RowMapping]:
    """Return some sign-ins that the identity provider last confirmed more than `each_s` seconds ago.

    Each has the digest of its person's admin token, and is marked as being confirmed now.
    """
    before = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, each_s)
    late = (
        select(_here.id)
        .where(_here.state == GIVEN, _is_live, _here.renewal.is_not(None), _here.asked_at < before)
        .order_by(_here.asked_at)
        .limit(DUE_MAX)
        .with_for_update(skip_locked=True)
    )
    digest = select(_token.digest).where(_token.id == _here.token_id).scalar_subquery()
    asked = update(agent_sign_in).where(_here.id.in_(late)).values(asked_at=func.now())
    return connection.execute(asked.returning(agent_sign_in, digest.label("token_digest"))).mappings().all()


def keep_renewal(connection: Connection, row_id: int, renewal: str) -> None:
    connection.execute(update(agent_sign_in).where(_here.id == row_id).values(renewal=renewal))


def take_renewal(connection: Connection, session_id: int, renewal: str) -> bool:
    """Clear the refresh token of a console session if it is still `renewal`; return whether it was.

    The provider accepts a refresh token once, so only one caller may use it.
    """
    sessions = console_session.c
    mine = update(console_session).where(sessions.id == session_id, sessions.renewal == renewal)
    return connection.execute(mine.values(renewal=None).returning(sessions.id)).first() is not None


def end(connection: Connection, row_id: int) -> None:
    connection.execute(delete(agent_sign_in).where(_here.id == row_id))
