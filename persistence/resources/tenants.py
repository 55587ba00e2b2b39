"""Tenants, and the actions that move their quota.

Who is shut out makes no other to call by: staff alone delete a tenant that they blocked, and where all of an
organization are blocked, its own people make none.
"""

from __future__ import annotations

from sqlalchemy import insert, select, text

from gateway.core.accounts.administration import Row
from gateway.errors import Forbidden, Unprocessable
from persistence import crud
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
from persistence.tables import api_key, budget, organization, tenant, token_plan

# A person's word counts from when it is written, whatever the counters have heard of it.
_IS_BLOCKED = """coalesce((
    SELECT w.verb = 'block' FROM control_write AS w
     WHERE w.account = 'tenant:' || t.id AND w.verb IN ('block', 'unblock') AND w.state <> 'refused'
     ORDER BY w.position DESC LIMIT 1), q.manual_block, false)"""
_BLOCKED = text(f"""
SELECT t.id FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
 WHERE t.id = :id AND {_IS_BLOCKED}""")  # noqa: S608  # ours
_SHUT_OUT = text(f"""
SELECT t.organization_id FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
 WHERE t.organization_id = :id AND t.deleted_at IS NULL
 GROUP BY t.organization_id HAVING bool_and({_IS_BLOCKED})""")  # noqa: S608  # ours


def create(change: Change) -> Row:
    """Make a tenant, its organization if none is named, its account and its plan."""
    require(change)
    values = change.command.values
    organization_id = _organization_of(change)
    _refuse_shut_out(change, organization_id)
    tenant_id = add(change, organization_id=organization_id, plan_id=None)
    quotas.open_account(change, tenant_id)
    change.define(f"tenant:{tenant_id}", organization_id)
    if values.get("plan_id") is not None:
        quotas.set_plan(change, tenant_id, organization_id, values["plan_id"])
    given_plans.give(change, organization_id, tenant_id)
    return change.fetch(tenant_id)


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


def delete(change: Change) -> Row:
    """Delete a tenant that nothing refers to."""
    if not change.by_staff and change.connection.scalar(_BLOCKED, {"id": change.row_id}) is not None:
        raise Forbidden("Staff have blocked this tenant: they decide what becomes of it.")
    return crud.delete(change)


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


def _refuse_shut_out(change: Change, owner: int) -> None:
    if not change.by_staff and change.connection.scalar(_SHUT_OUT, {"id": owner}) is not None:
        raise Forbidden("Staff have blocked all tenants of this organization: they make another one.")


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
        "delete": delete,
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
