"""Plans as subscriptions sold them, with the terms of that time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from gateway.core.billing.proration import (
    PlanVersion,
    TokenTerms,
    sold_with,
)
from gateway.core.times import moment_of
from persistence.queries import query

MONTHLY = "monthly"
# The terms of a plan that are fixed when a cycle begins.
_SOLD = ("total_amount", "overage_policy", "reset_interval", "time_zone", "anchor_day")

# The last value suffices if it is older than the cycle.
SAID_MAX = 1_000
_SAID = query("plans.said", "Select the terms of a plan by time", """
SELECT since, total_amount, overage_policy, reset_interval, time_zone, anchor_day FROM token_plan_price
 WHERE plan_id = :plan AND reset_interval IS NOT NULL ORDER BY since DESC LIMIT :count""")  # fmt: skip
_GIVEN = query("plans.given", "Select the last plan of a tenant", """
SELECT payload, created_at FROM control_write WHERE account = :account AND verb = 'plan'
 ORDER BY position DESC LIMIT 1""")  # fmt: skip
_RENEWED = query("plans.renewed", "Select the last reset of a tenant", """
SELECT max(created_at) FROM control_write
 WHERE account = :account AND verb = 'reset' AND state <> 'refused' AND created_at <= :at""")  # fmt: skip

# A row of token plans.
TokenPlan = Mapping[str, Any]


def sold_plan_of(
    connection: Connection, tenant_id: int, plan: TokenPlan, at: datetime, anchor: int
) -> TokenPlan:
    """Return a tenant's plan with the terms in force when the cycle that contains `at` began.

    It must be called before another plan is stored. `anchor` is the day of the month on which the tenant's
    months begin.
    """
    rows = connection.execute(_SAID, {"plan": plan["id"], "count": SAID_MAX}).mappings().all()[::-1]
    account = f"tenant:{tenant_id}"
    given = connection.execute(_GIVEN, {"account": account}).first()
    got = None
    if given is not None and given.payload.get("plan_id") == plan["id"]:
        given_plan = {**plan, **{name: given.payload[name] for name in _SOLD if name in given.payload}}
        since = given.payload.get("since_ms")
        got = PlanVersion(
            given.created_at if since is None else moment_of(int(since)), terms_of(given_plan, anchor)
        )
    renewed = connection.execute(_RENEWED, {"account": account, "at": at}).scalar()
    versions = [PlanVersion(row["since"], terms_of(dict(row), anchor)) for row in rows]
    terms = sold_with(versions or [PlanVersion(at, terms_of(plan, anchor))], got, renewed, at)
    return {**plan, **_fields(terms)}


def terms_of(plan: TokenPlan, anchor: int) -> TokenTerms:
    day = plan["anchor_day"] or (anchor if plan["reset_interval"] == MONTHLY else 1)
    return TokenTerms(
        plan["total_amount"], plan["overage_policy"], plan["reset_interval"], plan["time_zone"], int(day)
    )


def _fields(terms: TokenTerms) -> dict[str, object]:
    return dict(
        zip(
            _SOLD, (terms.total, terms.policy, terms.interval, terms.time_zone, terms.anchor_day), strict=True
        )
    )
