"""Groups of users, tenants, API keys or projects, and their members."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, Select, Text, bindparam, cast, func, literal, select, true

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_selectors import NAMES_MAX, too_many_of_groups
from gateway.core.accounts.budgets import OF_GROUP
from gateway.core.accounts.groups import (
    API_KEY,
    GROUPS_MAX,
    ID,
    MEMBERS_MAX,
    ORGANIZATION_MEMBERS_MAX,
    TENANT,
    USER,
)
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.entity import Entity, EntityWrite, id_in, live, lock
from persistence.resources import people
from persistence.resources.tags import fixed_tags, group_sets, lock_budgets, selectors_of
from persistence.tables import api_key, budget, budget_override, caller_group, organization, tenant

# The organization's rows that a group of a kind has as members.
_THEIRS = {
    TENANT: select(tenant.c.id).where(
        tenant.c.id.in_(bindparam("ids", expanding=True)), tenant.c.organization_id == bindparam("owner"),
        tenant.c.deleted_at.is_(None),
    ),
    API_KEY: select(api_key.c.id).join(tenant, tenant.c.id == api_key.c.tenant_id).where(
        api_key.c.id.in_(bindparam("ids", expanding=True)), tenant.c.organization_id == bindparam("owner")
    ),
}  # fmt: skip
OVERRIDE_IS_IN_FORCE: Final = func.coalesce(budget_override.c.until > func.now(), true())
MEMBER, MEMBERS = "member", "members"


def _locked(change: EntityWrite) -> None:
    """Wait for others who change groups or budgets of the organization."""
    values = change.command.values
    owner = values["organization_id"] if change.command.id is None else change.fetch()["organization_id"]
    lock_budgets(change.connection, int(str(owner)))


def _check_row(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` if an organization's groups are too many, or bring calls too many budgets."""
    owner, errors = id_in(row, "organization_id"), list[tuple[str, str]]()
    count = change.connection.execute(
        select(func.count(), func.sum(func.jsonb_array_length(caller_group.c.members))).where(
            caller_group.c.organization_id == owner, caller_group.c.deleted_at.is_(None)
        )
    ).one()
    if count[0] > GROUPS_MAX:
        errors.append(("organization_id", f"it has {GROUPS_MAX} groups: there cannot be more"))
    if count[1] > ORGANIZATION_MEMBERS_MAX:
        errors.append((MEMBERS, f"all groups of an organization have at most {ORGANIZATION_MEMBERS_MAX}"))
    field = "claim" if "claim" in change.command.values and MEMBERS not in change.command.values else MEMBERS
    if not errors and (why := _meets_too_many(change.connection, owner)):
        errors.append((field, why))
    if errors:
        raise Unprocessable(errors=tuple(errors))


def _check_values(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` if the members or the claim of a group, which is to be `row`, are wrong."""
    kind, owner, members = str(row["kind"]), id_in(row, "organization_id"), row.get(MEMBERS, [])
    assert isinstance(members, list)
    if errors := _wrong(change.connection, kind, owner, members, row.get("claim")):
        raise Unprocessable(errors=errors)


def _wrong(
    connection: Connection, kind: str, owner: int, members: Sequence[Any], claim: object
) -> tuple[tuple[str, str], ...]:
    """Return (field, fault) of an error in the members or the claim of a group."""
    if len(members) > MEMBERS_MAX:
        return ((MEMBERS, f"must be at most {MEMBERS_MAX}"),)
    if len(set(members)) < len(members):
        return ((MEMBERS, "must each be there once"),)
    if claim is not None and kind != USER:
        return (("claim", "needs a group of the kind user"),)
    if kind in _THEIRS and members:
        theirs = connection.scalars(_THEIRS[kind], {"ids": members, "owner": owner})
        if missing := set(members).difference(theirs):
            return ((MEMBERS, f"there is no {kind.replace('_', ' ')} {min(missing)} of this organization"),)
    return ()


def _meets_too_many(connection: Connection, owner: int) -> str:
    groups, fixed = group_sets(connection, owner), fixed_tags(connection, owner)
    return too_many_of_groups(selectors_of(connection, owner), groups, fixed) if groups else ""


def _read(change: EntityWrite, kind: object, field: str) -> None:
    """Replace the members in the command's `field` by those to store: texts of users, numbers of others.

    Raise `Unprocessable` if one is neither.
    """
    values = dict(change.command.values)
    if field not in values:
        return
    named = values[field]
    members = named if isinstance(named, list) else [named]
    if kind == USER:
        wrong = any(not isinstance(member, str) for member in members)
        right = "texts, the callers' own ids of users"
    else:
        members = [
            int(member) if isinstance(member, str) and ID.fullmatch(member) else member for member in members
        ]
        wrong = any(type(member) is not int for member in members)
        right = f"ids of {str(kind).replace('_', ' ')}s"
    if wrong:
        raise Unprocessable(errors=((field, f"must be {right}"),))
    values[field] = members if isinstance(named, list) else members[0]
    change.command = replace(change.command, values=values)


def create(change: EntityWrite) -> Row:
    entity.require(change)
    _locked(change)
    _read(change, change.command.values["kind"], MEMBERS)
    _check_values(change, change.command.values)
    return entity.create(change)


def change_group(change: EntityWrite) -> Row:
    _locked(change)
    row = change.fetch()
    _read(change, row["kind"], MEMBERS)
    _check_values(change, {**row, **change.command.values})
    return entity.change_row(change)


def put_member(change: EntityWrite) -> Row:
    """Add a member to a group; where there is one already, nothing changes."""
    row, members, member = _lock_member(change)
    return row if member in members else _with_members(change, [*members, member])


def remove_member(change: EntityWrite) -> Row:
    """Remove a member from a group; where there is none, nothing changes."""
    row, members, member = _lock_member(change)
    if member not in members:
        return row
    return _with_members(change, [other for other in members if other != member])


def _lock_member(change: EntityWrite) -> tuple[Row, Sequence[object], object]:
    """Return the locked row of a group, its members, and the member to put or remove.

    The audit log has this member alone.
    """
    _locked(change)
    row = lock(change)
    change.before = None
    _read(change, row["kind"], MEMBER)
    members = row[MEMBERS]
    assert isinstance(members, list)
    return row, members, change.command.values[MEMBER]


def _with_members(change: EntityWrite, members: Sequence[object]) -> Row:
    _check_values(change, {**change.fetch(), MEMBERS: members})
    entity.alter(change, {MEMBERS: members})
    row = change.fetch()
    people.define_organization(change, row)
    _check_row(change, row)
    return row


def overrides_of_members(budget_ids: Collection[int], names: Collection[str]) -> Select[Any]:
    """Return the query of overrides in force of groups with these members: `member`, `group_id`, and their rows."""
    member = func.jsonb_array_elements_text(caller_group.c.members).table_valued("value", name="m")
    is_its = budget_override.c.value == literal(OF_GROUP) + cast(caller_group.c.id, Text)
    return (
        select(budget_override, caller_group.c.id.label("group_id"), member.c.value.label("member"))
        .select_from(budget_override.join(caller_group, is_its).join(member, true()))
        .where(budget_override.c.budget_id.in_(budget_ids), member.c.value.in_(names), OVERRIDE_IS_IN_FORCE)
    )


def delete(change: EntityWrite) -> Row:
    """Delete a group; raise `Conflict` with the budgets that name it."""
    _locked(change)
    overrides = select(budget_override.c.budget_id).where(
        budget_override.c.value == f"{OF_GROUP}{change.row_id}", OVERRIDE_IS_IN_FORCE
    )
    is_named = (budget.c.group_id == change.row_id) | budget.c.id.in_(overrides)
    named = live(budget, budget.c.name).where(is_named).order_by(budget.c.name)
    if names := [*change.connection.scalars(named.limit(NAMES_MAX))]:
        raise Conflict(f"Budgets or their overrides name this group, delete them first: {', '.join(names)}.")
    return entity.delete(change)


SUBJECT = Entity(
    caller_group,
    verbs={
        "create": create,
        "change": change_group,
        "put-member": put_member,
        "remove-member": remove_member,
        "delete": delete,
    },
    refers={"organization_id": organization},
    check_row=_check_row,
    define=people.define_organization,
    defining=frozenset({MEMBERS, "claim"}),
)
