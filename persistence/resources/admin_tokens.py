"""Named admin tokens: credentials of the Admin API, stored as digests only."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, func, or_, select, update

from gateway.core.accounts.administration import OWNER, Actor, Row
from gateway.core.accounts.roles import MEMBER
from gateway.errors import Forbidden, Unprocessable
from persistence import crud
from persistence.claimed import claim
from persistence.subject import Change, Subject, Verb, alter, lock
from persistence.tables import admin_token, app_user, organization

# Stands in the place of a deleted token's digest: no credential has such a one.
FORGOTTEN = "forgotten:"
# How old the last use of a token may be told: it is not written with each.
LAST_USE_AGE = timedelta(minutes=1)

_here = admin_token.c
_IS_THERE = ~_here.digest.startswith(FORGOTTEN)


def find(connection: Connection, digest: str) -> Actor | None:
    """Find a token that is neither expired nor revoked, and note that it is used."""
    row = connection.execute(
        select(
            _here.id, _here.role, _here.user_id, _here.organization_id, _here.ours,
            (func.coalesce(_here.last_used_at < func.now() - LAST_USE_AGE, True)).label("is_long_ago"),
        )
        .outerjoin(organization, organization.c.id == _here.organization_id)
        .where(
            _here.digest == digest,
            _here.revoked_at.is_(None),
            or_(_here.expires_at.is_(None), _here.expires_at > func.now()),
            organization.c.deleted_at.is_(None),
        )
    ).first()  # fmt: skip
    if row is None:
        return None
    if row.is_long_ago:
        # Whoever holds the row changes it just now: its use is noted with the next one.
        free = select(_here.id).where(_here.id == row.id).with_for_update(skip_locked=True)
        connection.execute(update(admin_token).where(_here.id.in_(free)).values(last_used_at=func.now()))
    return Actor(f"token:{row.id}", row.role, row.id, row.user_id, row.organization_id, is_ours=row.ours)


def has_ended(connection: Connection, digest: str) -> bool:
    """Whether there is a token that `find` does not find any more."""
    there = connection.execute(select(_here.id).where(_here.digest == digest)).first()
    return there is not None and find(connection, digest) is None


def check_user(change: Change, row: Row) -> None:
    """`Unprocessable` where a token of an organization would act as somebody of another."""
    if row["organization_id"] is None or row["user_id"] is None:
        return
    owner = select(app_user.c.organization_id).where(app_user.c.id == row["user_id"])
    if change.connection.execute(owner).scalar() not in {None, row["organization_id"]}:
        raise Unprocessable(errors=(("user_id", "is a user of another organization"),))


def create(change: Change) -> Row:
    """Keep a new token; one of people only where nobody could claim another organization's."""
    values = change.command.values
    if values["role"] == MEMBER and values.get(OWNER) is None:
        raise Unprocessable(errors=((OWNER, "is required: a member is of one organization"),))
    claim(change, admin_token, "token", _IS_THERE)
    return crud.create(change)


def delete(change: Change) -> Row:
    """Forget the token; the row stays for the audit log, which names it."""
    row = lock(change)
    revoked_at = func.coalesce(_here.revoked_at, func.now())
    alter(change, {"digest": f"{FORGOTTEN}{change.row_id}", "revoked_at": revoked_at})
    return row


def _by_equals(verb: Verb) -> Verb:
    """Let an organization's own people do nothing to a token that staff made for staff."""

    def do(change: Change) -> Row:
        actor = change.command.actor
        if lock(change)["ours"] and actor.organization_id is not None:
            if "expires_at" in change.command.values:
                raise Forbidden(
                    "Staff marked this token `ours`: a token of all organizations alone says its end."
                )
            if not actor.is_ours:
                raise Forbidden("Staff marked this token `ours`: its end and its name are theirs to decide.")
        return verb(change)

    return do


SUBJECT = Subject(
    admin_token,
    source=select(admin_token).where(_IS_THERE),
    verbs={
        "create": create,
        "change": _by_equals(crud.change_row),
        "revoke": _by_equals(crud.revoke),
        "delete": _by_equals(delete),
    },
    refers={"user_id": app_user, "organization_id": organization},
    check_row=check_user,
)
