"""The stored use of budgets as the Admin API reads it: by when it begins to count."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, cast, func, select
from sqlalchemy.types import BigInteger

from persistence.tables import budget_use


def stored_uses(columns: Any) -> ColumnElement[Any]:
    """Return an aggregate of rows of use: a list of [start (Unix ms), used, carried, limit_at_end, changed]; null without rows."""
    start_ms = cast(func.floor(func.extract("epoch", columns.start) * 1000), BigInteger)
    return func.jsonb_agg(
        func.jsonb_build_array(start_ms, columns.used, columns.carried, columns.limit_at_end, columns.changed)
    )


def account_uses() -> Select[Any]:
    """Return a query for the accounts of budgets: owner, name, and `uses` as `stored_uses` has them."""
    here = budget_use.c
    return select(
        here.budget_id, here.value, func.max(here.name).label("name"), func.sum(here.used).label("used"),
        stored_uses(here).label("uses"),
    ).group_by(here.budget_id, here.value)  # fmt: skip
