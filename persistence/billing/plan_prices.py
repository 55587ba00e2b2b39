"""What subscription plans cost since when for all who have them.

A price that is changed by hand is that of subscriptions to come. One that reaches all counts in `reprices` of
its plan when its day comes; a subscription says how many of them its fee follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal

from sqlalchemy import Connection, Text, cast, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from gateway.core.accounts.administration import Row
from gateway.errors import Unprocessable
from persistence import crud
from persistence.subject import Change, day_in, json_of, live, lock
from persistence.tables import subscription_plan, subscription_plan_price

# What a cycle costs: a plan's price, and how many times. A quarter is three months.
COSTS = {"monthly": ("monthly_cost", 1), "quarterly": ("monthly_cost", 3), "annual": ("annual_cost", 1)}
_NAMES = ("monthly_cost", "annual_cost")
_plan, _price = subscription_plan, subscription_plan_price
_DUE = text("""
SELECT DISTINCT plan_id FROM subscription_plan_price
 WHERE number IS NULL AND effective_from <= :today ORDER BY 1 LIMIT :count""")


def reprice(change: Change) -> Row:
    """`/reprice`: what it costs from a day on for all who have it, but for who negotiated a fee."""
    row = lock(change)
    values, day = change.command.values, day_in(change.command.values, "from")
    said = {name: values[name] for name in _NAMES if name in values}
    errors = [] if said else [(name, "required, unless another of these is said") for name in _NAMES]
    if day < change.today:
        errors.append(("from", f"must be in the future, or today, {change.today}"))
    if errors:
        raise Unprocessable(errors=tuple(errors))
    if not row["prices"]:  # what it cost until then
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
    return advance(change)


def advance(change: Change) -> Row:
    """Have prices that reach all take effect whose day has come."""
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


def due(connection: Connection, today: date, count: int) -> Sequence[int]:
    """Plans with prices whose day has come."""
    return connection.execute(_DUE, {"today": today, "count": count}).scalars().all()


def since(connection: Connection, plan_id: int, interval: str, reprices: int) -> list[tuple[date, Decimal]]:
    """From which days on all who have a plan pay another price, behind so many of these."""
    name, times = COSTS[interval]
    here = _price.c
    found = select(here.effective_from, here[name]).where(here.plan_id == plan_id, here.number > reprices)
    return [(day, Decimal(cost) * times) for day, cost in connection.execute(found.order_by(here.number))]


_said = json_of(
    cast(_price.c.effective_from, Text).label("from"),
    *_price.c[_NAMES],
    _price.c.number.is_(None).label("waits"),
)  # fmt: skip
_prices = (
    select(func.jsonb_agg(aggregate_order_by(_said, _price.c.number, _price.c.effective_from)))
    .where(_price.c.plan_id == _plan.c.id)
    .correlate(_plan)
    .scalar_subquery()
)
SOURCE = live(_plan, *_plan.c, func.coalesce(_prices, func.jsonb_build_array()).label("prices"))
VERBS = {**crud.VERBS, "reprice": reprice, "advance": advance}
