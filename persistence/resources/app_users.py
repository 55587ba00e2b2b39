"""Users of organizations, and staff (no organization)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import ARRAY, BigInteger, ScalarSelect, Text, cast, func, select, update

from gateway.core.accounts.administration import Actor, Row
from gateway.errors import Conflict
from persistence import crud, together
from persistence.subject import THIS, Change, Subject, add, fitted, id_in, live, require
from persistence.tables.people import admin_token, app_user, organization, tenant
from persistence.together import OneByOne, is_one_of

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
    """Have the user's limits loaded again, in each tenant of the organization."""
    _define_all([(change, row)])


def _define_all(made: Sequence[tuple[Change, Row]]) -> None:
    """The same of many."""
    tenants: dict[object, list[int]] = defaultdict(list)
    if owners := {row["organization_id"] for _, row in made} - {None}:
        found = live(tenant, tenant.c.id, tenant.c.organization_id).order_by(tenant.c.id)
        of_them = found.where(is_one_of(tenant.c.organization_id, owners))
        for row_id, owner in made[0][0].connection.execute(of_them):
            tenants[owner].append(row_id)
    for change, row in made:
        accounts = [f"user:{one}:{row['external_id']}" for one in tenants[row["organization_id"]]]
        if accounts:
            change.intend(accounts, "define", {}, organization_id=id_in(row, "organization_id"))


def create(change: Change) -> Row:
    """Make a user, or bring a deleted one of the same external id back."""
    require(change)
    values = change.command.values
    same = (
        app_user.c.organization_id.is_not_distinct_from(values.get("organization_id")),
        app_user.c.external_id == values["external_id"],
    )
    old = change.connection.execute(
        select(app_user.c.id, app_user.c.deleted_at).where(*same).with_for_update()
    ).first()
    if old is None:
        row_id = add(change)
    elif old.deleted_at is None:
        raise Conflict("There is a user of this external_id in the organization already.")
    else:
        row_id = int(old.id)
        kept = {name: values.get(name) for name in ("name", "limits")}
        again = {**kept, "deleted_at": None, "first_sight": False}
        change.connection.execute(
            update(app_user).where(app_user.c.id == row_id).values(fitted(app_user, again))
        )
    row = change.fetch(row_id)
    if row["limits"] or old is not None:
        define(change, row)
    return row


def create_all(changes: Sequence[Change]) -> Sequence[Row]:
    """Make many users that were never there."""
    together.require(changes)
    named = [change.command.values for change in changes]
    ids = [each["external_id"] for each in named]
    owners = [each.get("organization_id") for each in named]
    same = (
        func.unnest(cast(owners, ARRAY(BigInteger)), cast(ids, ARRAY(Text)))
        .table_valued("owner", "name")
        .render_derived("same")
    )
    there = select(app_user.c.id).join(
        same,
        (app_user.c.external_id == same.c.name)
        & app_user.c.organization_id.is_not_distinct_from(same.c.owner),
    )
    if changes[0].connection.execute(there.limit(1)).first() is not None:
        raise OneByOne
    rows = together.fetch(changes, together.add(changes))
    _define_all([each for each in zip(changes, rows, strict=True) if each[1]["limits"]])
    return rows


def delete(change: Change) -> Row:
    """Delete a user; the one that the settings' tokens act as is always there."""
    row = change.fetch()
    if row["organization_id"] is None and row["external_id"] == BUILT_IN:
        raise Conflict("The built-in staff user is always there.")
    return crud.delete(change)


def change_all(changes: Sequence[Change]) -> Sequence[Row]:
    """Change many."""
    together.lock(changes)
    together.require(changes)
    together.alter(changes, [change.command.values for change in changes])
    rows = together.fetch(changes)
    _define_all([each for each in zip(changes, rows, strict=True) if "limits" in each[0].command.values])
    return rows


def delete_all(changes: Sequence[Change]) -> Sequence[Row]:
    """Delete many of organizations."""
    rows = together.forget(changes)
    if any(row["organization_id"] is None for row in rows):
        raise OneByOne
    _define_all([*zip(changes, rows, strict=True)])
    return rows


SUBJECT = Subject(
    app_user,
    verbs={"create": create, "change": crud.change_row, "delete": delete},
    refers={"organization_id": organization},
    referenced={
        "Admin tokens still belong to this user; delete them first.": select(admin_token.c.id).where(
            admin_token.c.user_id == THIS, admin_token.c.revoked_at.is_(None)
        ),
    },
    define=define,
    defining=frozenset({"limits"}),
)
