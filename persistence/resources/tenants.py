"""Tenants, and the actions that move their quota."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert, select

from gateway.core.accounts.administration import Row
from gateway.errors import Unprocessable
from persistence import crud, together
from persistence.billing import given_plans, quotas
from persistence.billing.beyond import prices_of
from persistence.names import named
from persistence.resources import organizations
from persistence.subject import (
    THIS,
    Change,
    Subject,
    Verb,
    add,
    alter,
    fetch,
    id_in,
    live,
    lock,
    require,
)
from persistence.tables.budgets import budget
from persistence.tables.people import api_key, organization, tenant, token_plan
from persistence.together import OneByOne


def create(change: Change) -> Row:
    """Make a tenant, its organization if none is named, its account and its plan."""
    require(change)
    values = change.command.values
    organization_id = _organization_of(change)
    tenant_id = add(change, organization_id=organization_id, plan_id=None)
    quotas.open_account(change, tenant_id)
    change.define(f"tenant:{tenant_id}", organization_id)
    if values.get("plan_id") is not None:
        quotas.set_plan(change, tenant_id, organization_id, values["plan_id"])
    given_plans.give(change, organization_id, tenant_id)
    return change.fetch(tenant_id)


def create_all(changes: Sequence[Change]) -> Sequence[Row]:
    """Make many tenants of organizations that are there, with their accounts and plans."""
    owners = [change.command.values.get("organization_id") for change in changes]
    if None in owners:
        raise OneByOne
    together.require(changes)
    quotas.refuse_currencies(changes)
    ids = together.add(changes)
    quotas.open_accounts(changes, ids)
    given = given_plans.subscribed(changes[0].connection, owners)
    for change, tenant_id in zip(changes, ids, strict=True):
        organization_id = id_in(change.command.values, "organization_id")
        if organization_id in given:
            given_plans.give(change, organization_id, tenant_id)
    return together.fetch(changes, ids)


def change_tenant(change: Change) -> Row:
    """Change name, limits or plan."""
    before = lock(change)
    require(change)
    values = dict(change.command.values)
    organization_id = id_in(before, "organization_id")
    plan_id = values.pop("plan_id", before["plan_id"])
    alter(change, values)
    if values.keys() & {"limits", "user_limits"}:
        define(change, before)
    if plan_id != before["plan_id"]:
        quotas.set_plan(change, change.row_id, organization_id, plan_id)
    return change.fetch()


def change_all(changes: Sequence[Change]) -> Sequence[Row]:
    """Change names and limits of many together, the plans of those that get another one by one."""
    before = together.lock(changes)
    together.require(changes)
    said = [dict(change.command.values) for change in changes]
    plans = [values.pop("plan_id", row["plan_id"]) for values, row in zip(said, before, strict=True)]
    together.alter(changes, said)
    for change, row, values, plan_id in zip(changes, before, said, plans, strict=True):
        if values.keys() & {"limits", "user_limits"}:
            define(change, row)
        if plan_id != row["plan_id"]:
            quotas.set_plan(change, change.row_id, id_in(row, "organization_id"), plan_id)
    return together.fetch(changes)


def define(change: Change, row: Row) -> None:
    """Have the tenant loaded again."""
    change.define(f"tenant:{row['id']}", row["organization_id"])


def action(verb: str) -> Verb:
    """Make a verb that moves the tenant's quota; its values are the control write's payload."""

    def act(change: Change) -> Row:
        organization_id = id_in(lock(change), "organization_id")
        change.before = None
        values = change.command.values
        if values.get("direction") == "OUT":
            beyond = prices_of(change.connection, change.row_id)
            if errors := beyond.too_much(int(str(values["amount"])), 0):
                raise Unprocessable(errors=(("amount", errors[0][1]),))
        change.intend([f"tenant:{change.row_id}"], verb, values, organization_id=organization_id)
        return fetch(change.connection, quotas.SUBJECT, change.row_id)

    return act


def _organization_of(change: Change) -> int:
    values = change.command.values
    if values.get("organization_id") is not None:
        return id_in(values, "organization_id")
    made = change.connection.execute(
        insert(organization).values(name=values["name"]).returning(organization.c.id)
    )
    organization_id = int(made.scalar_one())
    organizations.define(change, {"organization_id": organization_id})
    return organization_id


SUBJECT = Subject(
    tenant,
    conditions={"search": named(tenant)},
    verbs={
        "create": create,
        "change": change_tenant,
        "delete": crud.delete,
        **{verb: action(verb) for verb in ("recharge", "reset", "adjust", "block", "unblock")},
    },
    refers={"organization_id": organization, "plan_id": token_plan},
    # Its ledger stays.
    referenced={
        "The tenant still has API keys that are not revoked.": select(api_key.c.id).where(
            api_key.c.tenant_id == THIS, api_key.c.revoked_at.is_(None)
        ),
        "A budget is of this tenant; delete it first.": live(budget).where(budget.c.tenant_id == THIS),
    },
    define=define,
)
