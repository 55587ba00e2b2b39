"""Subscriptions of organizations: one each; every plan it ever had is kept as a segment.

A change updates three things at once: the row, its segments, and the token plan that its tenants inherit. The
definition of the organization passes it on to the gateways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Text, cast, func, insert, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from gateway.core.accounts.administration import Row
from gateway.core.billing import subscription as rules
from gateway.core.billing.charges import ONE_DAY
from gateway.core.billing.proration import SegmentEnd
from gateway.core.billing.subscription import PlanSegment, SegmentTerms, Subscription
from gateway.core.times import MILLISECOND
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.billing import charges, quotas
from persistence.billing.proration import segment_of
from persistence.entity import Entity, EntityWrite, add, day_in, id_in, json_of, live, lock, require
from persistence.queries import query
from persistence.tables import (
    organization,
    organization_subscription,
    subscription_plan,
    subscription_plan_price,
    subscription_segment,
    subscription_term,
)

# The dated prices of subscription plans.
#
# A price changed in the plan applies to later subscriptions only. A price set by `/reprice` reaches all
# subscribers: on its day it increases the plan's `reprices`, and a subscription stores how many of them its
# fee includes.

# The price of a cycle: the plan's column, and a factor. A quarter is three months.
COSTS = {"monthly": ("monthly_cost", 1), "quarterly": ("monthly_cost", 3), "annual": ("annual_cost", 1)}
_NAMES = ("monthly_cost", "annual_cost")
_plan, _price = subscription_plan, subscription_plan_price
PLAN_PRICES_DUE = query("subscriptions.plan_prices_due", "Select plans whose next prices are due", """
SELECT DISTINCT plan_id FROM subscription_plan_price
 WHERE number IS NULL AND effective_from <= :today ORDER BY 1 LIMIT :count""")  # fmt: skip
DUE = query("subscriptions.due", "Select subscriptions that are due to change", """
SELECT s.id FROM organization_subscription AS s
 WHERE s.change_at <= :today OR s.status = 'future' AND s.start_date <= :today
    OR s.status <> 'over' AND (s.end_date <= :today
       OR EXISTS (SELECT FROM subscription_term AS t
                   WHERE t.subscription_id = s.id AND t.anchor_date = s.start_date AND NOT t.in_force
                     AND t.starts_on <= :today AND t.starts_on < s.end_date)
       OR EXISTS (SELECT FROM subscription_plan AS p WHERE p.id = s.plan_id AND p.reprices > s.reprices))
 ORDER BY s.id LIMIT :count""")  # fmt: skip


def reprice(change: EntityWrite) -> Row:
    """Set a plan's price from a day on (`/reprice`) for all subscribers without a negotiated fee."""
    row = lock(change)
    values, day = change.command.values, day_in(change.command.values, "from")
    said = {name: values[name] for name in _NAMES if name in values}
    errors = [] if said else [(name, "required, unless another of these is said") for name in _NAMES]
    if day < change.today:
        errors.append(("from", f"must be in the future, or today, {change.today}"))
    if errors:
        raise Unprocessable(errors=tuple(errors))
    if not row["prices"]:  # the price until then
        made = row["created_at"]
        assert isinstance(made, datetime)
        since = {"effective_from": made.astimezone(UTC).date(), "number": 0}
        before = {name: row[name] for name in _NAMES}
        change.connection.execute(insert(_price).values(plan_id=change.row_id, **since, **before))
    change.connection.execute(
        insert_or_update(_price)
        .values(plan_id=change.row_id, effective_from=day, **said)
        .on_conflict_do_update(
            index_elements=["plan_id", "effective_from"], index_where=_price.c.number.is_(None), set_=said
        )
    )
    return advance_plan_price(change)


def advance_plan_price(change: EntityWrite) -> Row:
    """Apply prices whose day has come to the plan and all its subscribers."""
    row = lock(change)
    waiting = select(_price).where(
        _price.c.plan_id == change.row_id,
        _price.c.number.is_(None),
        _price.c.effective_from <= change.today,
    )
    for price in change.connection.execute(waiting.order_by(_price.c.effective_from)).mappings().all():
        costs = {name: row[name] if price[name] is None else price[name] for name in _NAMES}
        number = int(str(row["reprices"])) + 1
        change.connection.execute(
            update(_price).where(_price.c.id == price["id"]).values(number=number, **costs)
        )
        values = {**costs, "reprices": number, "updated_at": func.now()}
        change.connection.execute(update(_plan).where(_plan.c.id == change.row_id).values(values))
        row = {**row, **values}
    return change.fetch()


def plan_prices_due(connection: Connection, today: date, count: int) -> Sequence[int]:
    return connection.execute(PLAN_PRICES_DUE, {"today": today, "count": count}).scalars().all()


_price_in_words = json_of(
    cast(_price.c.effective_from, Text).label("from"),
    *_price.c[_NAMES],
    _price.c.number.is_(None).label("waits"),
)  # fmt: skip
_prices = (
    select(func.jsonb_agg(aggregate_order_by(_price_in_words, _price.c.number, _price.c.effective_from)))
    .where(_price.c.plan_id == _plan.c.id)
    .correlate(_plan)
    .scalar_subquery()
)
PLAN_PRICE_SOURCE = live(_plan, *_plan.c, func.coalesce(_prices, func.jsonb_build_array()).label("prices"))
PLAN_PRICE_VERBS = {**entity.VERBS, "reprice": reprice, "advance": advance_plan_price}


# Terms agreed at the start of a subscription.
AGREED = ("billing", "trial_end", "discount_rate", "discount_end", "minimum_commitment")
# Ten years: each past day becomes a charge when the subscription is created.
START_DAYS_MAX = 3_660
NEGOTIATED = ("negotiated_cost", "overage_unit_price")


def create(change: EntityWrite) -> Row:
    """Subscribe an organization; an ended subscription is replaced."""
    values = change.command.values
    organization_id, plan_id = id_in(values, "organization_id"), id_in(values, "plan_id")
    start, end = day_in(values, "start_date"), _end_in(values)
    _hold_organization(change, organization_id)
    require(change)
    _require_currency(change, organization_id, plan_id)
    _check_days(values, start, end, change.today)
    interval = str(values.get("billing_interval") or "monthly")
    agreed = {name: values.get(name) for name in AGREED}
    terms = SegmentTerms(**agreed)  # type: ignore[arg-type]  # as the Admin API has checked them
    negotiated, quantity = values.get("negotiated_cost"), int(str(values.get("quantity", 1)))
    cost = _cost(change, plan_id, interval) if negotiated is None else Decimal(str(negotiated))
    begun = rules.begin(plan_id, interval, cost, start, end)
    begun = rules.agree(begun, terms, quantity, negotiated=negotiated is not None)
    old = change.connection.execute(
        select(organization_subscription).where(
            organization_subscription.c.organization_id == organization_id
        )
    ).first()
    if old is None:
        row_id = add(change, billing_interval=interval, end_date=end)
    else:
        begun_once = old.end_date > old.start_date
        if begun_once and old.end_date > change.today:
            raise Conflict("The organization has a subscription; change or cancel that one.")
        if begun_once and start < old.end_date:
            raise Unprocessable(errors=(("start_date", f"the last subscription ended on {old.end_date}"),))
        row_id = int(old.id)
        renewed = {"quantity": quantity, **{name: values.get(name) for name in (*AGREED, *NEGOTIATED)}}
        here = organization_subscription
        change.connection.execute(update(here).where(here.c.id == row_id).values(renewed))
    return _keep(change, row_id, organization_id, begun)


def change_plan(change: EntityWrite) -> Row:
    """Switch to another plan (`/change`), now or at the end of the running period."""
    row = _held(change)
    require(change)
    plan_id = id_in(change.command.values, "plan_id")
    _require_currency(change, id_in(row, "organization_id"), plan_id)
    subscription = _subscription(change, row)
    if plan_id == subscription.current.plan_id:
        raise Conflict("The subscription is on this plan already.")
    if change.command.values.get("when", "now") == "now":
        cost = _cost(change, plan_id, subscription.current.interval)
        changed = rules.change_now(subscription, plan_id, cost, change.today)
    else:
        changed = rules.change_at_period_end(subscription, plan_id, change.today)
    return _store_subscription(change, row, changed, now=change.command.values.get("when", "now") == "now")


def agree_terms(change: EntityWrite) -> Row:
    """Set discount, minimum, fee or quantity from a day on (`/terms`), today or later."""
    row = _held(change)
    require(change)
    values, day = change.command.values, day_in(change.command.values, "from")
    said = {name: values[name] for name in rules.TERMS if name in values}
    subscription = _subscription(change, row)
    if subscription.end <= change.today:
        raise Conflict(f"The subscription ended on {subscription.end}; make a new one.")
    errors = [] if said else [(name, "required, unless another of these is said") for name in rules.TERMS]
    since = rules.plan_since(subscription)
    if day < since:
        errors.append(("from", f"must be after {since - ONE_DAY}: it has had its plan since then"))
    if day >= subscription.end:
        errors.append(("from", f"must be before {subscription.end}, when it ends"))
    if errors:
        raise Unprocessable(errors=tuple(errors))
    told = {name: None if each is None else str(each) for name, each in said.items()}
    here = insert_or_update(subscription_term).values(
        organization_id=row["organization_id"], subscription_id=change.row_id,
        anchor_date=subscription.current.anchor, starts_on=day, said=told,
    )  # fmt: skip
    change.connection.execute(
        here.on_conflict_do_update(
            index_elements=["subscription_id", "anchor_date", "starts_on"],
            set_={"said": subscription_term.c.said.op("||")(here.excluded.said), "in_force": False},
        )
    )
    return _store_subscription(change, row, _apply_terms(change, subscription))


def cancel(change: EntityWrite) -> Row:
    """End the subscription (`/cancel`), now or at the end of the running period."""
    row = _held(change)
    now = change.command.values.get("when") == "now"
    return _store_subscription(
        change, row, rules.cancel(_subscription(change, row), change.today, now=now), now=now
    )


def extend(change: EntityWrite) -> Row:
    """Change the end date of a subscription, its only field that can be set directly."""
    row = _held(change)
    end = _end_in({**row, **change.command.values})
    if end == _end_in(row) and row["cancel_at"] is None:
        return change.fetch()
    return _store_subscription(change, row, rules.extend(_subscription(change, row), end, change.today))


def advance(change: EntityWrite) -> Row:
    """Apply what has become due: terms, prices, a scheduled plan change, the beginning or the end."""
    row = _held(change)
    subscription = _subscription(change, row)
    if subscription.change_at is not None:
        # Until that day the terms apply to the previous plan.
        subscription = _apply_terms(change, subscription, min(change.today, subscription.change_at - ONE_DAY))
    if subscription.next_plan_id is not None:
        cost = _cost(change, subscription.next_plan_id, subscription.current.interval)
        subscription = rules.advance(subscription, cost, change.today)
    return _store_subscription(change, row, _apply_terms(change, subscription))


def tell(change: EntityWrite, plan: Row) -> None:
    """Push a changed plan to all its subscribers: the token plans of their tenants, and their features."""
    here = organization_subscription
    subscribed = select(here.c.organization_id).where(here.c.plan_id == plan["id"], here.c.status != "over")
    for organization_id in change.connection.execute(subscribed.order_by(here.c.id)).scalars().all():
        _define(change, organization_id)


def due(connection: Connection, today: date, count: int) -> Sequence[int]:
    """Return up to `count` ids of subscriptions that begin, change or end today, or should have before."""
    return connection.execute(DUE, {"today": today, "count": count}).scalars().all()


def _hold_organization(change: EntityWrite, organization_id: int) -> None:
    """Lock an organization against new subscriptions and tenants.

    This must be the transaction's first lock.
    """
    here = select(organization.c.id).where(organization.c.id == organization_id)
    change.connection.execute(here.with_for_update(key_share=True))


def _held(change: EntityWrite) -> Row:
    """Lock the organization and the command's row, so that no tenant is created meanwhile; return the row."""
    _hold_organization(change, id_in(change.fetch(), "organization_id"))
    return lock(change)


def _end_in(values: Row) -> date:
    """Return the end date in these values, or `NO_END` for a subscription that renews."""
    return rules.NO_END if values.get("end_date") is None else day_in(values, "end_date")


def _check_days(values: Row, start: date, end: date, today: date) -> None:
    """Raise `Unprocessable` for dates outside the subscription, or a discount's end without a discount."""
    if abs((start - today).days) > START_DAYS_MAX:
        raise Unprocessable(errors=(("start_date", f"must be within {START_DAYS_MAX} days from today"),))
    errors = [("end_date", "must be after start_date")] if end <= start else []
    for name in ("trial_end", "discount_end"):
        day = values.get(name)
        if isinstance(day, date) and not start < day <= end:
            errors.append((name, "must be after start_date, and not after end_date"))
    if values.get("discount_end") is not None and values.get("discount_rate") is None:
        errors.append(("discount_end", "needs a discount_rate"))
    if errors:
        raise Unprocessable(errors=tuple(errors))


def _store_subscription(
    change: EntityWrite, row: Row, subscription: Subscription, *, now: bool = False
) -> Row:
    return _keep(change, change.row_id, id_in(row, "organization_id"), subscription, now=now)


def _keep(
    change: EntityWrite, row_id: int, organization_id: int, subscription: Subscription, *, now: bool = False
) -> Row:
    """Store a subscription with its segments, and put its plan into force; return the row.

    With `now`, the previous plan ends at this moment, else at midnight.
    """
    current, plan = subscription.current, subscription_plan
    start = min(segment.start for segment in subscription.segments)
    values = {
        "plan_id": current.plan_id,
        "start_date": current.anchor,
        "end_date": subscription.end,
        "billing_interval": current.interval,
        "next_plan_id": subscription.next_plan_id,
        "change_at": subscription.change_at,
        "cancel_at": subscription.cancel_at,
        "negotiated_cost": current.unit_cost if current.negotiated else None,
        "quantity": current.quantity,
        **{name: getattr(current.terms, name) for name in AGREED},
        "reprices": select(plan.c.reprices).where(plan.c.id == current.plan_id).scalar_subquery(),
        "status": rules.status(start, subscription.end, change.today),
        "updated_at": func.now(),
    }
    here = organization_subscription
    change.connection.execute(update(here).where(here.c.id == row_id).values(values))
    for segment in subscription.segments:
        _keep_segment(change, organization_id, segment)
    charges.accrue_fees(change.connection, organization_id, change.today)
    _define(change, organization_id, _ended(change, row_id, subscription, now=now))
    since = min([change.today, *(segment.start for segment in subscription.segments if not segment.id)])
    charges.accrue_moved(change.connection, organization_id, since)
    return change.fetch(row_id)


def _ended(change: EntityWrite, row_id: int, subscription: Subscription, *, now: bool) -> SegmentEnd | None:
    """Return the segment that ended last, if any; it ended at midnight, or with `now` at this moment."""
    over = subscription.end <= change.today
    past = subscription.segments if over else subscription.segments[:-1]
    if not past or past[-1].end > change.today:
        return None
    at = change.now if now else rules.midnight(past[-1].end) - MILLISECOND
    return SegmentEnd(row_id, subscription.segments, past[-1], at, over)


def _define(change: EntityWrite, organization_id: int, ended: SegmentEnd | None = None) -> None:
    change.define(f"organization:{organization_id}", organization_id)
    quotas.give_plan(change, organization_id, ended=ended)


def _keep_segment(change: EntityWrite, organization_id: int, segment: PlanSegment) -> None:
    """Store a new segment of a subscription, or the changed end of a stored one."""
    here = subscription_segment
    if segment.id:
        ended = update(here).where(here.c.id == segment.id, here.c.end_date != segment.end)
        change.connection.execute(ended.values(end_date=segment.end))
        return
    change.connection.execute(
        insert(here).values(
            organization_id=organization_id,
            plan_id=segment.plan_id,
            billing_interval=segment.interval,
            cost=segment.cost,
            anchor_date=segment.anchor,
            start_date=segment.start,
            end_date=segment.end,
            quantity=segment.quantity,
            negotiated=segment.negotiated,
            **{name: getattr(segment.terms, name) for name in AGREED},
        )
    )


def _subscription(change: EntityWrite, row: Mapping[str, Any]) -> Subscription:
    """Return the stored subscription `row` as an object of the billing rules, with its current segments."""
    here = subscription_segment
    rows = change.connection.execute(
        select(here)
        .where(here.c.organization_id == row["organization_id"], here.c.anchor_date == row["start_date"])
        .order_by(here.c.start_date, here.c.id)
    ).all()
    segments = tuple(segment_of(row) for row in rows)
    found = Subscription(segments, row["next_plan_id"], row["change_at"], row["cancel_at"])
    # Price changes of the plan that come after those already applied.
    (name, times), prices = COSTS[found.current.interval], _price.c
    later = select(prices.effective_from, prices[name]).where(
        prices.plan_id == found.current.plan_id, prices.number > row["reprices"]
    )
    for day, cost in change.connection.execute(later.order_by(prices.number)):
        since = max(day, rules.plan_since(found))
        found = rules.agree_from(found, {rules.REPRICED: True}, since, Decimal(cost) * times)
    return found


def _apply_terms(change: EntityWrite, subscription: Subscription, until: date | None = None) -> Subscription:
    """Return the subscription with all terms applied whose day has come by `until` (default: today).

    Later terms override fields of earlier ones.
    """
    current, here = subscription.current, subscription_term.c
    mine = (here.subscription_id == change.row_id, here.anchor_date == current.anchor)
    come = (*mine, here.starts_on <= (until or change.today), here.starts_on < subscription.end)
    terms = change.connection.execute(select(subscription_term).where(*come).order_by(here.starts_on)).all()
    waiting = [term.starts_on for term in terms if not term.in_force]
    if waiting:
        cost = _cost(change, current.plan_id, current.interval)
        for term in terms:
            if term.starts_on >= waiting[0]:
                subscription = rules.agree_from(subscription, term.said, term.starts_on, cost)
        change.connection.execute(update(subscription_term).where(*come).values(in_force=True))
    return subscription


def _require_currency(change: EntityWrite, organization_id: int, plan_id: int) -> None:
    """Raise `Unprocessable` if the currencies of plan and organization differ: nothing is converted."""
    pays, costs = organization.c, subscription_plan.c
    statement = select(pays.currency, costs.currency.label("plan")).where(
        pays.id == organization_id, costs.id == plan_id, pays.currency != costs.currency
    )
    if other := change.connection.execute(statement).first():
        wrong = f"costs {other.plan}, and the organization pays in {other.currency}"
        raise Unprocessable(errors=(("plan_id", wrong),))


def _cost(change: EntityWrite, plan_id: int, interval: str) -> Decimal:
    name, times = COSTS[interval]
    column = subscription_plan.c[name]
    result = change.connection.execute(select(column).where(subscription_plan.c.id == plan_id))
    return Decimal(result.scalar_one()) * times


_term = subscription_segment.c
_segment = json_of(
    _term.plan_id, _term.billing_interval, cast(func.round(_term.cost, 9), Text).label("cost"),
    _term.start_date, func.nullif(_term.end_date, rules.NO_END).label("end_date"),
)  # fmt: skip
_agreed = subscription_term.c
_said = _agreed.said.op("||")(
    json_of(cast(_agreed.starts_on, Text).label("from"), (~_agreed.in_force).label("waits"))
)
_terms = (
    select(
        func.coalesce(func.jsonb_agg(aggregate_order_by(_said, _agreed.starts_on)), func.jsonb_build_array())
    )
    .where(
        _agreed.subscription_id == organization_subscription.c.id,
        _agreed.anchor_date == organization_subscription.c.start_date,
    )
    .scalar_subquery()
)
_segments = (
    select(func.jsonb_agg(aggregate_order_by(_segment, _term.id)))
    .where(_term.organization_id == organization_subscription.c.organization_id)
    .scalar_subquery()
)

SUBJECT = Entity(
    organization_subscription,
    source=select(
        *(column for column in organization_subscription.c if column.name != "end_date"),
        func.nullif(organization_subscription.c.end_date, rules.NO_END).label("end_date"),
        _segments.label("segments"),
        _terms.label("terms"),
    ),
    verbs={
        "create": create,
        "change": change_plan,
        "cancel": cancel,
        "terms": agree_terms,
        "extend": extend,
        "advance": advance,
    },
    refers={"organization_id": organization, "plan_id": subscription_plan},
)
