"""Named admin tokens: credentials of the Admin API, stored as digests only."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection, func, or_, select, update

from gateway.core.accounts.administration import MEMBER, OWNER, TEAM_ROLES, TENANT, Actor, Row
from gateway.errors import Forbidden, Unprocessable
from persistence import entity
from persistence.entity import Entity, EntityWrite, Verb, alter, live, lock
from persistence.resources.claimed_subjects import claim_subject
from persistence.tables import admin_token, app_user, organization, tenant

# Replaces the digest of a deleted token: no credential has it.
FORGOTTEN = "forgotten:"
# The precision of a token's last use, which is not stored at each use.
LAST_USE_AGE = timedelta(minutes=1)

_here = admin_token.c
_IS_THERE = ~_here.digest.startswith(FORGOTTEN)


def find_admin_token(connection: Connection, digest: str) -> Actor | None:
    """Return the actor for a valid admin token's digest, and store the time of use; None if invalid."""
    row = connection.execute(
        select(
            _here.id, _here.role, _here.user_id, _here.organization_id, _here.ours, _here.tenant_id,
            (func.coalesce(_here.last_used_at < func.now() - LAST_USE_AGE, True)).label("is_long_ago"),
        )
        .outerjoin(organization, organization.c.id == _here.organization_id)
        .outerjoin(tenant, tenant.c.id == _here.tenant_id)
        .where(
            _here.digest == digest,
            _here.revoked_at.is_(None),
            or_(_here.expires_at.is_(None), _here.expires_at > func.now()),
            organization.c.deleted_at.is_(None),
            tenant.c.deleted_at.is_(None),
        )
    ).first()  # fmt: skip
    if row is None:
        return None
    if row.is_long_ago:
        # The row is locked by a change: the time is stored with the next use.
        free = select(_here.id).where(_here.id == row.id).with_for_update(skip_locked=True)
        connection.execute(update(admin_token).where(_here.id.in_(free)).values(last_used_at=func.now()))
    return Actor(
        f"token:{row.id}", row.role, row.id, row.user_id, row.organization_id, is_ours=row.ours,
        tenant_id=row.tenant_id,
    )  # fmt: skip


def admin_token_has_ended(connection: Connection, digest: str) -> bool:
    there = connection.execute(select(_here.id).where(_here.digest == digest)).first()
    return there is not None and find_admin_token(connection, digest) is None


def check_user(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` if an organization's token would act as a user of another organization."""
    if row["organization_id"] is None or row["user_id"] is None:
        return
    owner = select(app_user.c.organization_id).where(app_user.c.id == row["user_id"])
    if change.connection.execute(owner).scalar() not in {None, row["organization_id"]}:
        raise Unprocessable(errors=(("user_id", "is a user of another organization"),))


def create_admin_token(change: EntityWrite) -> Row:
    """Store a new admin token, and claim its subject if signed tokens are used instead of a secret."""
    _narrow(change)
    values = change.command.values
    if values["role"] == MEMBER and values.get(OWNER) is None:
        raise Unprocessable(errors=((OWNER, "is required: a member is of one organization"),))
    claim_subject(change, admin_token, "token", _IS_THERE)
    return entity.create(change)


_OURS_OF_A_TEAM = (("ours", "must be false: a token of one tenant never decides what its organization owes"),)


def _narrow(change: EntityWrite) -> None:
    """Check the tenant to which a new token is restricted; set the organization to the tenant's."""
    values = change.command.values
    if (named := values.get(TENANT)) is None:
        return
    if values["role"] not in TEAM_ROLES:
        message = f"must be {', '.join(TEAM_ROLES[:-1])} or {TEAM_ROLES[-1]} for a token of one tenant"
        raise Unprocessable(errors=(("role", message),))
    if values.get("ours"):
        raise Unprocessable(errors=_OURS_OF_A_TEAM)
    owner = change.connection.execute(live(tenant, tenant.c[OWNER]).where(tenant.c.id == named)).scalar()
    if owner is None or change.within not in {None, owner}:
        raise Unprocessable(errors=((TENANT, f"there is no tenant {named}"),))
    if values.get(OWNER) not in {None, owner}:
        raise Unprocessable(errors=((TENANT, "is of another organization"),))
    change.command = replace(change.command, values={**values, OWNER: owner})


def _of_no_team(change: EntityWrite) -> Row:
    """Change a token; raise `Unprocessable` if a token of one tenant would be marked `ours`."""
    if change.command.values.get("ours") and lock(change)[TENANT] is not None:
        raise Unprocessable(errors=_OURS_OF_A_TEAM)
    return entity.change_row(change)


def delete_admin_token(change: EntityWrite) -> Row:
    """Delete the token's digest; the row is kept for the audit log, which refers to it."""
    row = lock(change)
    revoked_at = func.coalesce(_here.revoked_at, func.now())
    alter(change, {"digest": f"{FORGOTTEN}{change.row_id}", "revoked_at": revoked_at})
    return row


def _guard_ours(verb: Verb) -> Verb:
    """Return the verb with a check for tokens that staff marked as `ours`, such as a change of their name.

    Callers of an organization cannot change the end of such a token, and other fields only with an `ours`
    token themselves.
    """

    def do(change: EntityWrite) -> Row:
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


ADMIN_TOKEN_SUBJECT = Entity(
    admin_token,
    source=select(admin_token).where(_IS_THERE),
    verbs={
        "create": create_admin_token,
        "change": _guard_ours(_of_no_team),
        "revoke": _guard_ours(entity.revoke),
        "delete": _guard_ours(delete_admin_token),
    },
    refers={"user_id": app_user, "organization_id": organization, "tenant_id": tenant},
    check_row=check_user,
)
