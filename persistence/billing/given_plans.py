"""Token plans that tenants have from the subscription of their organization."""

from __future__ import annotations

from sqlalchemy import select

from gateway.core.billing.early_use import Ended
from persistence.billing import quotas
from persistence.subject import Change
from persistence.tables import organization_subscription, subscription_plan, tenant


def give(
    change: Change, organization_id: int, tenant_id: int | None = None, *, ended: Ended | None = None
) -> None:
    """Give the organization's tenants (or one) the token plan of its subscription in force, or take it.

    `ended` is the segment that gave them the plan they have, where it is over.
    """
    found = change.connection.execute(
        select(
            subscription_plan.c.token_plan_id,
            organization_subscription.c.start_date,
            organization_subscription.c.status,
        )
        .join(subscription_plan, subscription_plan.c.id == organization_subscription.c.plan_id)
        .where(organization_subscription.c.organization_id == organization_id)
    ).first()
    if found is None:
        return
    plan_id = found.token_plan_id if found.status == "active" else None
    began = found.start_date if plan_id is not None else None
    wanted = select(tenant.c.id).where(
        tenant.c.organization_id == organization_id,
        tenant.c.deleted_at.is_(None),
        tenant.c.inherited_plan_id.is_distinct_from(plan_id),
    )
    if tenant_id is not None:
        wanted = wanted.where(tenant.c.id == tenant_id)
    for one in change.connection.execute(wanted.order_by(tenant.c.id)).scalars().all():
        quotas.inherit(change, one, organization_id, plan_id, began=began, ended=ended)
    if ended is not None:
        gone = select(tenant.c.id).where(
            tenant.c.organization_id == organization_id,
            tenant.c.deleted_at.is_not(None),
            tenant.c.plan_id.is_(None),
            tenant.c.inherited_plan_id.is_not(None),
            tenant.c.inherited_plan_id.is_distinct_from(plan_id),
        )
        for one in change.connection.execute(gone.order_by(tenant.c.id)).scalars().all():
            quotas.forget_plan(change, one, organization_id, ended)
