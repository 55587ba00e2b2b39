"""Token plans: a change is loaded again for every tenant that follows the plan."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import func

from gateway.core.accounts.administration import Row
from gateway.core.accounts.plan_terms import TERMS
from persistence import crud
from persistence.subject import THIS, Change, Subject, live
from persistence.tables.billing import subscription_plan
from persistence.tables.people import tenant, token_plan

# A tenant's own plan, else the one its organization's subscription gives it.
plan_in_force = func.coalesce(tenant.c.plan_id, tenant.c.inherited_plan_id)


def define(change: Change, row: Row) -> None:
    """Have the plan loaded again for its tenants; nobody else needs to know of it."""
    tenants = change.connection.execute(
        live(tenant, tenant.c.id, tenant.c.organization_id)
        .where(plan_in_force == row["id"])
        .order_by(tenant.c.id)
    )
    by_organization: dict[int, list[str]] = defaultdict(list)
    for tenant_id, organization_id in tenants:
        by_organization[organization_id].append(f"tenant:{tenant_id}")
    for organization_id, accounts in by_organization.items():
        change.intend(accounts, "define", {}, organization_id=organization_id)


SUBJECT = Subject(
    token_plan,
    verbs=crud.VERBS,
    referenced={
        "Tenants still follow this plan; move them first.": live(tenant).where(plan_in_force == THIS),
        "Subscription plans still name this plan.": live(subscription_plan).where(
            subscription_plan.c.token_plan_id == THIS
        ),
    },
    define=define,
    defining=frozenset(one.name for one in TERMS),
)
