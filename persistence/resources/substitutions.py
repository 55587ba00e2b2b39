"""Calls that steps of budgets sent as another model, by pair of models, and what they saved."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, and_, func, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import UsageQuery
from persistence.tables import call, money

# Most pairs of models that a page names.
SUBSTITUTIONS_MAX = 20


def select_step(budget_id: object) -> ColumnElement[bool]:
    """Return the condition that a step of a budget sent a call as another model; it fits the index of such calls."""
    return and_(call.c.model_asked.is_not(None), call.c.substituted_by["id"].astext == str(budget_id))


def substitutions(connection: Connection, asked: UsageQuery, budget_id: int | None = None) -> Sequence[Row]:
    """Return what steps of budgets saved in a query's time, by the models that answered and were asked for.

    The largest come first. Empty if the query filters by what calls have no column for. With `budget_id` only what
    this budget's steps saved.
    """
    if not asked.filters.keys() <= {*call.c.keys()}:
        return []
    by = call.c.model, call.c.model_asked, call.c.currency
    steps = () if budget_id is None else (select_step(budget_id),)
    saved = func.sum(call.c.saved)
    pairs = (
        select(*by, money(saved).label("saved"), func.count().label("requests"))
        .where(
            call.c.model_asked.isnot(None), call.c.created_at >= asked.since, call.c.created_at < asked.until
        )
        .where(*steps, *(call.c[name] == wanted for name, wanted in asked.filters.items()))
        .group_by(*by)
        .order_by(saved.desc().nulls_last(), *by)
        .limit(SUBSTITUTIONS_MAX)
    )
    return [dict(row) for row in connection.execute(pairs).mappings()]
