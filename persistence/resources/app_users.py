"""Users of organizations, and staff (users without an organization)."""

from __future__ import annotations

from sqlalchemy import ScalarSelect, func, select, update

from gateway.core.accounts.administration import Actor, Row
from gateway.errors import Conflict
from persistence import entity
from persistence.entity import THIS, Entity, EntityWrite, add, fit_columns, id_in, live, require
from persistence.tables import admin_token, app_user, organization, tenant

BUILT_IN = "built-in"


def acting(actor: Actor) -> int | ScalarSelect[int] | None:
    """Return the id of the user that an actor acts as; None if the actor has no user.

    For a token in the settings it is the built-in user.
    """
    if actor.token_id is not None or actor.user_id is not None:
        return actor.user_id
    return (
        select(app_user.c.id)
        .where(app_user.c.organization_id.is_(None), app_user.c.external_id == BUILT_IN)
        .scalar_subquery()
    )


# Maximum of an organization's tenants and users with a list of models, and of those with a policy of runs:
# each gateway loads all of them.
LISTS_MAX = 1_000
_LISTS = {"models": (tenant, app_user), "runs": (tenant,)}


def define_lists(change: EntityWrite, organization_id: int) -> None:
    """Push the organization to the gateways if the command writes a list of models or a policy of runs.

    Raise `Conflict` if too many tenants and users of the organization have one.
    """
    values = change.command.values
    for name in values.keys() & _LISTS.keys():
        there = sum(
            change.connection.execute(
                live(table, func.count()).where(
                    table.c.organization_id == organization_id, table.c[name].is_not(None)
                )
            ).scalar_one()
            for table in _LISTS[name]
        )
        if values[name] is not None and there > LISTS_MAX:
            raise Conflict(f"{LISTS_MAX} tenants and users of an organization say {name}: no more may.")
        change.define(f"organization:{organization_id}", organization_id)


def define(change: EntityWrite, row: Row) -> None:
    """Push the user's limits to the counters of every tenant of the organization."""
    if row["organization_id"] is None:
        return
    owner = id_in(row, "organization_id")
    define_lists(change, owner)
    if row["models"] is not None and "models" not in change.command.values:
        change.define(f"organization:{owner}", owner)  # its list of models is gone with it
    tenants = live(tenant).where(tenant.c.organization_id == owner).order_by(tenant.c.id)
    accounts = [f"user:{one}:{row['external_id']}" for one in change.connection.scalars(tenants)]
    if accounts:
        change.intend(accounts, "define", {}, organization_id=owner)


def create(change: EntityWrite) -> Row:
    """Create a user, or restore a deleted one with the same external id."""
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
        kept = {name: values.get(name) for name in ("name", "limits", "models")}
        again = {**kept, "deleted_at": None, "first_sight": False}
        change.connection.execute(
            update(app_user).where(app_user.c.id == row_id).values(fit_columns(app_user, again))
        )
    row = change.fetch(row_id)
    if row["limits"] or row["models"] or old is not None:
        define(change, row)
    return row


def delete(change: EntityWrite) -> Row:
    """Delete a user. Raise `Conflict` for the built-in user that stands for tokens in the settings."""
    row = change.fetch()
    if row["organization_id"] is None and row["external_id"] == BUILT_IN:
        raise Conflict("The built-in staff user is always there.")
    return entity.delete(change)


SUBJECT = Entity(
    app_user,
    verbs={"create": create, "change": entity.change_row, "delete": delete},
    refers={"organization_id": organization},
    referenced={
        "Admin tokens still belong to this user; delete them first.": select(admin_token.c.id).where(
            admin_token.c.user_id == THIS, admin_token.c.revoked_at.is_(None)
        ),
    },
    define=define,
    defining=frozenset({"limits", "models"}),
)
