"""The stored quotas of tenants, and the move of a tenant to another plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from sqlalchemy import case, func, insert, literal, literal_column, select, update

from gateway.core.accounts.administration import Row
from gateway.core.accounts.plans import plan_payload
from gateway.core.billing.proration import SegmentEnd
from gateway.core.model import BlockCause
from gateway.core.times import ms_of
from gateway.errors import Unprocessable
from persistence.billing import proration, sold_plans
from persistence.billing.plans import plan_in_force, priced_in
from persistence.billing.proration import PlanRemoval
from persistence.billing.sold_plans import TokenPlan
from persistence.entity import Entity, EntityWrite, id_in, lock, require
from persistence.tables import (
    organization,
    organization_subscription,
    subscription_plan,
    tenant,
    tenant_quota,
    token_plan,
)

# The negotiated price, for tenants with the plan of a subscription and none of their own.
_negotiated = (
    select(organization_subscription.c.overage_unit_price)
    .where(
        organization_subscription.c.organization_id == tenant.c.organization_id,
        tenant.c.plan_id.is_(None),
        tenant.c.inherited_plan_id.is_not(None),
    )
    .scalar_subquery()
)
_never_moved = func.coalesce(tenant_quota.c.last_seq, 0) == 0


def set_plan(change: EntityWrite, tenant_id: int, organization_id: int, plan_id: object) -> None:
    """Set a tenant's own plan now; None means the plan of its organization's subscription.

    Raise `Unprocessable` if the plan's price has another currency than the organization.
    """
    costs = None if plan_id is None else priced_in(change, plan_id)
    here = select(organization.c.currency).where(organization.c.id == organization_id)
    if costs is not None and (pays := change.connection.execute(here).scalar_one()) != costs:
        wrong = f"costs {costs}, and the organization pays in {pays}"
        raise Unprocessable(errors=(("plan_id", wrong),))
    _move(change, tenant_id, organization_id, {"plan_id": plan_id})


def inherit(
    change: EntityWrite,
    tenant_id: int,
    organization_id: int,
    plan_id: int | None,
    *,
    began: date | None,
    ended: SegmentEnd | None = None,
) -> None:
    """Set a tenant's inherited plan. Without an own plan, its cycles begin on the day the plan `began`.

    `ended` is the segment that gave the previous plan, if that segment is over.
    """
    own = change.connection.execute(select(tenant.c.plan_id).where(tenant.c.id == tenant_id)).scalar_one()
    if own is None and began is not None:
        change.connection.execute(
            update(tenant_quota).where(tenant_quota.c.tenant_id == tenant_id).values(anchor=began.day)
        )
    _move(change, tenant_id, organization_id, {"inherited_plan_id": plan_id}, ended, began=began)


def _move(
    change: EntityWrite,
    tenant_id: int,
    organization_id: int,
    values: Row,
    ended: SegmentEnd | None = None,
    *,
    began: date | None = None,
) -> None:
    """Store the plan ids in `values` for a tenant.

    If another plan comes into force by this, also store the control write that adjusts the tenant's quota.
    `ended` is the segment of the previous plan, `began` the first day of the new plan's subscription.
    """
    here = tenant.c.id == tenant_id
    before = change.connection.execute(select(plan_in_force).where(here).with_for_update()).scalar_one()
    change.connection.execute(update(tenant).where(here).values({**values, "updated_at": func.now()}))
    after = change.connection.execute(select(plan_in_force).where(here)).scalar_one()
    if after == before:
        return
    had, found = _plan(change, before), _plan(change, after)
    anchor = change.connection.execute(
        select(tenant_quota.c.anchor).where(tenant_quota.c.tenant_id == tenant_id)
    ).scalar_one()
    if had is not None and ended is not None:
        had = sold_plans.sold_plan_of(change.connection, tenant_id, had, ended.at, anchor)
    payload = plan_payload(found, anchor=anchor, since_ms=ms_of(change.now))
    # The organization's negotiated price is sent with the plan: the excess is charged by it.
    price = change.connection.execute(select(_negotiated).where(here)).scalar_one()
    priced = {} if price is None else {"overage_unit_price": f"{price:f}"}
    [write] = change.intend(
        [f"tenant:{tenant_id}"], "plan", payload | priced, organization_id=organization_id
    )
    taken = PlanRemoval(tenant_id, organization_id, write, anchor)
    if found is not None and began is not None:
        proration.regain_early_use(change.connection, taken, found, began, change.now)
    if had is None:
        return
    proration.end_debt(change.connection, taken, ended, had, found)
    if ended is not None:
        proration.note_early_use(change.connection, taken, ended, had, found)


def forget_plan(change: EntityWrite, tenant_id: int, organization_id: int, ended: SegmentEnd) -> None:
    """End the plan of a deleted tenant: its use is charged like any other tenant's."""
    here = tenant.c.id == tenant_id
    had = _plan(change, change.connection.execute(select(tenant.c.inherited_plan_id).where(here)).scalar())
    anchor = select(tenant_quota.c.anchor).where(tenant_quota.c.tenant_id == tenant_id)
    change.connection.execute(update(tenant).where(here).values(inherited_plan_id=None))
    if had is not None:
        taken = PlanRemoval(tenant_id, organization_id, None, change.connection.execute(anchor).scalar_one())
        had = sold_plans.sold_plan_of(change.connection, tenant_id, had, ended.at, taken.anchor)
        # No later plan continues with its tokens.
        proration.end_debt(change.connection, taken, ended, had, None)
        proration.note_early_use(change.connection, taken, replace(ended, over=True), had, None)


def _plan(change: EntityWrite, plan_id: object) -> TokenPlan | None:
    result = (
        change.connection.execute(select(token_plan).where(token_plan.c.id == plan_id)).mappings().first()
    )
    return None if result is None else dict(result)


def open_account(change: EntityWrite, tenant_id: int) -> None:
    """Insert a new tenant's quota row; the flusher updates the row from then on."""
    change.connection.execute(insert(tenant_quota).values(tenant_id=tenant_id))


def change_plan(change: EntityWrite) -> Row:
    before = lock(change)
    require(change)
    values = change.command.values
    if "plan_id" in values and values["plan_id"] != before["plan_id"]:
        set_plan(change, change.row_id, id_in(before, "organization_id"), values["plan_id"])
    return change.fetch()


def block_cause(tenant_id: str, blocked: str) -> str:
    """Return an SQL expression: the cause of a tenant's last block, null unless the tenant is `blocked`."""
    return f"""CASE WHEN {blocked} THEN coalesce((
        SELECT w.payload->>'cause' FROM control_write AS w
         WHERE w.account = 'tenant:' || {tenant_id} AND w.verb = 'block' AND w.state <> 'refused'
         ORDER BY w.position DESC LIMIT 1), '{BlockCause.MANUAL.word}') END"""


SUBJECT = Entity(
    tenant,
    source=(
        select(
            tenant.c.id,
            tenant.c.id.label("tenant_id"),
            tenant.c.organization_id,
            plan_in_force.label("plan_id"),
            func.coalesce(tenant_quota.c.tokens_used, 0).label("tokens_used"),
            case((_never_moved, token_plan.c.total_amount), else_=tenant_quota.c.tokens_remaining).label(
                "tokens_remaining"
            ),
            literal(0).label("tokens_held"),
            func.coalesce(tenant_quota.c.is_blocked, False).label("is_blocked"),
            func.coalesce(tenant_quota.c.manual_block, False).label("manual_block"),
            literal_column(block_cause("tenant.id", "tenant_quota.manual_block")).label("block_cause"),
            tenant_quota.c.last_reset,
            tenant_quota.c.next_reset_at,
        )
        .select_from(tenant)
        .outerjoin(tenant_quota, tenant_quota.c.tenant_id == tenant.c.id)
        .outerjoin(token_plan, token_plan.c.id == plan_in_force)
        .where(tenant.c.deleted_at.is_(None))
    ),
    conditions={
        "tenant_id": lambda wanted: tenant.c.id == wanted,
        "plan_id": lambda wanted: plan_in_force == wanted,
    },
    verbs={"change": change_plan},
    partitioned=True,
    refers={"plan_id": token_plan},
)


# Token plans that tenants inherit from the subscription of their organization.
def give_plan(
    change: EntityWrite,
    organization_id: int,
    tenant_id: int | None = None,
    *,
    ended: SegmentEnd | None = None,
) -> None:
    """Set or remove the token plan of an organization's subscription for all its tenants, or for one.

    `ended` is the segment that gave the previous plan, if that segment is over.
    """
    result = change.connection.execute(
        select(
            subscription_plan.c.token_plan_id,
            organization_subscription.c.start_date,
            organization_subscription.c.status,
        )
        .join(subscription_plan, subscription_plan.c.id == organization_subscription.c.plan_id)
        .where(organization_subscription.c.organization_id == organization_id)
    ).first()
    if result is None:
        return
    plan_id = result.token_plan_id if result.status == "active" else None
    began = result.start_date if plan_id is not None else None
    wanted = select(tenant.c.id).where(
        tenant.c.organization_id == organization_id,
        tenant.c.deleted_at.is_(None),
        tenant.c.inherited_plan_id.is_distinct_from(plan_id),
    )
    if tenant_id is not None:
        wanted = wanted.where(tenant.c.id == tenant_id)
    for one in change.connection.execute(wanted.order_by(tenant.c.id)).scalars().all():
        inherit(change, one, organization_id, plan_id, began=began, ended=ended)
    if ended is not None:
        gone = select(tenant.c.id).where(
            tenant.c.organization_id == organization_id,
            tenant.c.deleted_at.is_not(None),
            tenant.c.plan_id.is_(None),
            tenant.c.inherited_plan_id.is_not(None),
            tenant.c.inherited_plan_id.is_distinct_from(plan_id),
        )
        for one in change.connection.execute(gone.order_by(tenant.c.id)).scalars().all():
            forget_plan(change, one, organization_id, ended)
