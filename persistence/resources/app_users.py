"""Users of organizations, and staff (no organization)."""

from __future__ import annotations

from sqlalchemy import ScalarSelect, select, update

from gateway.core.accounts.administration import Actor, Row
from gateway.errors import Conflict
from persistence import crud
from persistence.subject import Change, Subject, add, equals, fetch, require
from persistence.tables.people import admin_token, app_user, organization, tenant

BUILT_IN = "built-in"


def acting(actor: Actor) -> int | ScalarSelect[int] | None:
    """The user an administrator acts as: his token's, or the built-in one of the settings' tokens."""
    if actor.token_id is not None or actor.user_id is not None:
        return actor.user_id
    return (
        select(app_user.c.id)
        .where(app_user.c.organization_id.is_(None), app_user.c.external_id == BUILT_IN)
        .scalar_subquery()
    )


def define(change: Change, row: Row) -> None:
    """Have the user's limits loaded anew, in each tenant of the organization."""
    if row["organization_id"] is None:
        return
    organization_id = int(str(row["organization_id"]))
    tenants = change.connection.execute(
        select(tenant.c.id)
        .where(tenant.c.organization_id == organization_id, tenant.c.deleted_at.is_(None))
        .order_by(tenant.c.id)
    ).scalars()
    accounts = [f"user:{tenant_id}:{row['external_id']}" for tenant_id in tenants]
    change.intend(accounts, "define", {}, organization_id=organization_id)


def create(change: Change) -> Row:
    """Make a user, or bring a deleted one of the same external id back."""
    require(change, {"organization_id": organization})
    values = change.command.values
    same = (
        app_user.c.organization_id.is_not_distinct_from(values.get("organization_id")),
        app_user.c.external_id == values["external_id"],
    )
    old = change.connection.execute(
        select(app_user.c.id, app_user.c.deleted_at).where(*same).with_for_update()
    ).first()
    if old is None:
        row_id = add(change, app_user)
    elif old.deleted_at is None:
        raise Conflict("There is a user of this external_id in the organization already.")
    else:
        row_id = int(old.id)
        limits = values.get("limits")
        kept = {k: v for k, v in limits.items() if v is not None} if isinstance(limits, dict) else {}
        change.connection.execute(
            update(app_user)
            .where(app_user.c.id == row_id)
            .values(deleted_at=None, name=values.get("name"), limits=kept, first_sight=False)
        )
    row = fetch(change.connection, SUBJECT, row_id)
    if row["limits"] or old is not None:
        define(change, row)
    return row


_verbs = crud.verbs(
    lambda: SUBJECT,
    app_user,
    referenced={
        "Admin tokens still belong to this user; delete them first.": lambda row_id: select(
            admin_token.c.id
        ).where(admin_token.c.user_id == row_id, admin_token.c.revoked_at.is_(None)),
    },
    define=define,
    defining=frozenset({"limits"}),
)


def delete(change: Change) -> Row:
    """Delete a user; the one that the settings' tokens act as is always there."""
    row = fetch(change.connection, SUBJECT, change.row_id)
    if row["organization_id"] is None and row["external_id"] == BUILT_IN:
        raise Conflict("The built-in staff user is always there.")
    return _verbs["delete"](change)


SUBJECT: Subject = Subject(
    source=select(app_user).where(app_user.c.deleted_at.is_(None)),
    id=app_user.c.id,
    time=app_user.c.created_at,
    order=(("id", app_user.c.id),),
    filters={
        "organization_id": equals(app_user.c.organization_id),
        "external_id": equals(app_user.c.external_id),
    },
    verbs={
        **_verbs,
        "create": create,
        "delete": delete,
    },
)
