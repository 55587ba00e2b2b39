"""Tenants, and the actions that move their quota."""

from __future__ import annotations

from sqlalchemy import insert, select

from gateway.core.accounts.administration import Row
from persistence.billing import quotas, subscriptions
from persistence.resources import organizations
from persistence.subject import (
    Change,
    Subject,
    Verb,
    add,
    alter,
    equals,
    fetch,
    lock,
    named,
    refuse_while,
    remove,
    require,
)
from persistence.tables.people import api_key, organization, tenant, token_plan


def create(change: Change) -> Row:
    """Make a tenant, its organization if none is named, its account and its plan."""
    require(change, {"organization_id": organization, "plan_id": token_plan})
    values = change.command.values
    organization_id = _organization_of(change)
    tenant_id = add(change, tenant, organization_id=organization_id, plan_id=None)
    quotas.open_account(change, tenant_id)
    change.intend([f"tenant:{tenant_id}"], "define", {}, organization_id=organization_id)
    if values.get("plan_id") is not None:
        quotas.set_plan(change, tenant_id, organization_id, int(str(values["plan_id"])))
    subscriptions.give_plans(change, organization_id, tenant_id)
    return fetch(change.connection, SUBJECT, tenant_id)


def change_tenant(change: Change) -> Row:
    """Change name, limits or plan."""
    before = lock(change, SUBJECT, tenant)
    require(change, {"plan_id": token_plan})
    values = dict(change.command.values)
    organization_id = int(str(before["organization_id"]))
    plan_id = values.pop("plan_id", before["plan_id"])
    alter(change, tenant, values)
    if values.keys() & {"limits", "user_limits"}:
        change.intend([f"tenant:{change.row_id}"], "define", {}, organization_id=organization_id)
    if plan_id != before["plan_id"]:
        chosen = None if plan_id is None else int(str(plan_id))
        quotas.set_plan(change, change.row_id, organization_id, chosen)
    return fetch(change.connection, SUBJECT, change.row_id)


def delete(change: Change) -> Row:
    """Delete a tenant without working keys; its ledger stays."""
    row = lock(change, SUBJECT, tenant)
    refuse_while(
        change,
        select(api_key.c.id).where(api_key.c.tenant_id == change.row_id, api_key.c.revoked_at.is_(None)),
        "The tenant still has API keys that are not revoked.",
    )
    remove(change, tenant)
    change.intend([f"tenant:{change.row_id}"], "define", {}, organization_id=int(str(row["organization_id"])))
    return row


def action(verb: str) -> Verb:
    """Make a verb that moves the tenant's quota; its values are the control write's payload."""

    def act(change: Change) -> Row:
        row = lock(change, SUBJECT, tenant)
        change.before = None
        organization_id = int(str(row["organization_id"]))
        change.intend(
            [f"tenant:{change.row_id}"], verb, change.command.values, organization_id=organization_id
        )
        return fetch(change.connection, quotas.SUBJECT, change.row_id)

    return act


def _organization_of(change: Change) -> int:
    values = change.command.values
    if values.get("organization_id") is not None:
        return int(str(values["organization_id"]))
    made = change.connection.execute(
        insert(organization).values(name=values["name"]).returning(organization.c.id)
    )
    organization_id = int(made.scalar_one())
    organizations.define(change, {"id": organization_id})
    return organization_id


SUBJECT: Subject = Subject(
    source=select(tenant).where(tenant.c.deleted_at.is_(None)),
    id=tenant.c.id,
    time=tenant.c.created_at,
    order=(("id", tenant.c.id),),
    filters={
        "organization_id": equals(tenant.c.organization_id),
        "plan_id": equals(tenant.c.plan_id),
        "name": equals(tenant.c.name),
        "search": named(tenant),
    },
    verbs={
        "create": create,
        "change": change_tenant,
        "delete": delete,
        **{verb: action(verb) for verb in ("recharge", "reset", "adjust", "block", "unblock")},
    },
)
