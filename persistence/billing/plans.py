"""Token plans: a change of a plan reloads every tenant that uses it.

The weights of kinds of tokens are in the catalogue, which every gateway loads.
"""

from __future__ import annotations

from collections import defaultdict
from typing import cast

from sqlalchemy import func, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import CATALOGUE_ACCOUNT
from gateway.core.accounts.intervals import wrong_calendar
from gateway.core.accounts.plans import TERMS
from gateway.core.accounts.weights import WEIGHTED_PLANS_MAX
from gateway.errors import Unprocessable
from persistence import entity
from persistence.entity import THIS, Entity, EntityWrite, live
from persistence.tables import organization, subscription_plan, tenant, token_plan

WEIGHTS = "weights"
# A tenant's own plan, else the plan of its organization's subscription.
plan_in_force = func.coalesce(tenant.c.plan_id, tenant.c.inherited_plan_id)


def define(change: EntityWrite, row: Row) -> None:
    """Push the changed plan to the counters of its tenants, and changed token weights to every gateway."""
    if row["weights"] or (change.command.verb == "change" and WEIGHTS in change.command.values):
        change.intend([CATALOGUE_ACCOUNT], "define", {}, organization_id=None)
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


def check_row(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` for an invalid calendar or currency, or if too many plans have weights."""
    interval, zone, anchor = (row[name] for name in ("reset_interval", "time_zone", "anchor_day"))
    errors = tuple(wrong_calendar(str(interval), str(zone), cast("int | None", anchor)))
    if errors:
        raise Unprocessable(errors=errors)
    if row["currency"] is not None and {"currency", "overage_unit_price"} & change.command.values.keys():
        _check_currency(change, row)
    _check_weights(change)


def priced_in(change: EntityWrite, plan_id: object) -> str | None:
    statement = select(token_plan.c.currency).where(token_plan.c.id == plan_id)
    return change.connection.execute(statement).scalar()


def _check_currency(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` if the plan has no price, or one of its users pays in another currency."""
    if row["overage_unit_price"] is None:
        raise Unprocessable(errors=(("currency", "belongs to overage_unit_price, and there is none"),))
    pays, sold = organization.c.currency, subscription_plan.c.currency
    on_it = live(tenant, pays).where(
        tenant.c.organization_id == organization.c.id, plan_in_force == row["id"], pays != row["currency"]
    )
    sells_it = live(subscription_plan, sold).where(
        subscription_plan.c.token_plan_id == row["id"], sold != row["currency"]
    )
    for others in (on_it, sells_it):
        if (other := change.connection.execute(others.limit(1)).scalar()) is not None:
            wrong = f"cannot be {row['currency']}: who is on this plan pays in {other}"
            raise Unprocessable(errors=(("currency", wrong),))


def _check_weights(change: EntityWrite) -> None:
    if not change.command.values.get(WEIGHTS):
        return
    weighing = live(token_plan, func.count()).where(token_plan.c.weights != {})
    if change.connection.execute(weighing).scalar_one() > WEIGHTED_PLANS_MAX:
        message = (
            f"are on {WEIGHTED_PLANS_MAX} plans already, the most there may be: take them off another one"
        )
        raise Unprocessable(errors=((WEIGHTS, message),))


SUBJECT = Entity(
    token_plan,
    verbs=entity.VERBS,
    referenced={
        "Tenants still follow this plan; move them first.": live(tenant).where(plan_in_force == THIS),
        "Subscription plans still name this plan.": live(subscription_plan).where(
            subscription_plan.c.token_plan_id == THIS
        ),
    },
    check_row=check_row,
    define=define,
    defining=frozenset({WEIGHTS, *(term.name for term in TERMS)}),
)
