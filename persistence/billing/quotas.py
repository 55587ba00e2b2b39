"""Tenants' quotas as last flushed, and the move of a tenant to another plan."""

from __future__ import annotations

from sqlalchemy import case, func, insert, literal, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.accounts.plan_terms import plan_payload
from gateway.errors import Conflict
from persistence.billing.plans import plan_in_force
from persistence.subject import Change, Subject, id_in, lock, require
from persistence.tables.billing import organization_subscription
from persistence.tables.people import tenant, tenant_quota, token_plan

# Of tenants that have the plan of a subscription, not one of their own.
_negotiated = (
    select(organization_subscription.c.overage_unit_price)
    .where(
        organization_subscription.c.organization_id == tenant.c.organization_id,
        tenant.c.plan_id.is_(None),
        tenant.c.inherited_plan_id.is_not(None),
    )
    .scalar_subquery()
)
# Tenants that used more of the plan they leave than the next one has, which would forgive it.
_LEFT_WITH = text("""
SELECT least(q.tokens_used, b.total_amount) AS used, a.total_amount AS total
  FROM subscription_plan AS p JOIN token_plan AS a ON a.id = p.token_plan_id AND a.overage_policy = 'block'
 CROSS JOIN subscription_plan AS o LEFT JOIN token_plan AS b ON b.id = o.token_plan_id
  JOIN tenant AS t ON t.organization_id = :organization AND t.deleted_at IS NULL AND t.plan_id IS NULL
  JOIN tenant_quota AS q ON q.tenant_id = t.id
 WHERE p.id = :after AND o.id = :before AND least(q.tokens_used, b.total_amount) > a.total_amount
 LIMIT 1""")
_never_moved = func.coalesce(tenant_quota.c.last_seq, 0) == 0


def set_plan(change: Change, tenant_id: int, organization_id: int, plan_id: object) -> None:
    """Give a tenant a plan of its own, now; None: the one its organization's subscription gives it."""
    _move(change, tenant_id, organization_id, {"plan_id": plan_id})


def inherit(
    change: Change, tenant_id: int, organization_id: int, plan_id: int | None, anchor: int | None
) -> None:
    """Give a tenant the plan of a subscription, unless it has its own; `anchor` aligns its cycles."""
    own = change.connection.execute(select(tenant.c.plan_id).where(tenant.c.id == tenant_id)).scalar_one()
    if own is None and anchor is not None:
        change.connection.execute(
            update(tenant_quota).where(tenant_quota.c.tenant_id == tenant_id).values(anchor=anchor)
        )
    _move(change, tenant_id, organization_id, {"inherited_plan_id": plan_id})


def _move(change: Change, tenant_id: int, organization_id: int, values: Row) -> None:
    """Bring the plan that follows into force, if it is another: the difference becomes an `adjust`."""
    here = tenant.c.id == tenant_id
    before = change.connection.execute(select(plan_in_force).where(here).with_for_update()).scalar_one()
    change.connection.execute(update(tenant).where(here).values({**values, "updated_at": func.now()}))
    after = change.connection.execute(select(plan_in_force).where(here)).scalar_one()
    if after == before:
        return
    found = change.connection.execute(select(token_plan).where(token_plan.c.id == after)).mappings().first()
    anchor = change.connection.execute(
        select(tenant_quota.c.anchor).where(tenant_quota.c.tenant_id == tenant_id)
    ).scalar_one()
    payload = plan_payload(dict(found) if found else None, anchor=anchor)
    # What its organization negotiated goes with the plan: what is owed beyond it is read from here.
    price = change.connection.execute(select(_negotiated).where(here)).scalar_one()
    priced = {} if price is None else {"overage_unit_price": f"{price:f}"}
    change.intend([f"tenant:{tenant_id}"], "plan", payload | priced, organization_id=organization_id)


def refuse_unpaid_use(change: Change, row: Row, plan_id: int) -> None:
    """Keep a big plan's tokens from being used for the price of its days: a smaller one waits for the period.

    Not where what is beyond the smaller plan is owed, by money or by the next cycle.
    """
    found = change.connection.execute(
        _LEFT_WITH, {"organization": row["organization_id"], "before": row["plan_id"], "after": plan_id}
    ).first()
    if found is not None:
        raise Conflict(
            f"{found.used} tokens of this cycle are used, and the plan has {found.total} and no price"
            " for more: change it when the period ends."
        )


def open_account(change: Change, tenant_id: int) -> None:
    """Give a new tenant its row; the flusher keeps it from then on."""
    change.connection.execute(insert(tenant_quota).values(tenant_id=tenant_id))


def change_plan(change: Change) -> Row:
    """`PATCH /tenant-quotas/{id}`."""
    before = lock(change)
    require(change)
    values = change.command.values
    if "plan_id" in values and values["plan_id"] != before["plan_id"]:
        set_plan(change, change.row_id, id_in(before, "organization_id"), values["plan_id"])
    return change.fetch()


SUBJECT = Subject(
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
