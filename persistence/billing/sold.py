"""What the cycle of tokens that a tenant has was sold with, whatever its plan was changed to since."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.early_use import TokenTerms
from gateway.core.billing.sold import Said, sold_with
from gateway.core.moments import moment_of

MONTHLY = "monthly"
# What a plan says that a cycle of tokens is sold with.
_SOLD = ("total_amount", "overage_policy", "reset_interval", "time_zone", "anchor_day")

# What was said last is enough where it was said before the cycle.
SAID_MAX = 1_000
_SAID = text("""
SELECT since, total_amount, overage_policy, reset_interval, time_zone, anchor_day FROM token_plan_price
 WHERE plan_id = :plan AND reset_interval IS NOT NULL ORDER BY since DESC LIMIT :count""")
_GIVEN = text("""
SELECT payload, created_at FROM control_write WHERE account = :account AND verb = 'plan'
 ORDER BY position DESC LIMIT 1""")
_RENEWED = text("""
SELECT max(created_at) FROM control_write
 WHERE account = :account AND verb = 'reset' AND state <> 'refused' AND created_at <= :at""")

# A row of token plans.
TokenPlan = Mapping[str, Any]


def plan_of(connection: Connection, tenant_id: int, plan: TokenPlan, at: datetime, anchor: int) -> TokenPlan:
    """A tenant's plan as it was when the cycle of a moment began, before another one is written.

    `anchor` is the day on which the tenant's months begin.
    """
    rows = connection.execute(_SAID, {"plan": plan["id"], "count": SAID_MAX}).mappings().all()[::-1]
    account = f"tenant:{tenant_id}"
    given = connection.execute(_GIVEN, {"account": account}).first()
    got = None
    if given is not None and given.payload.get("plan_id") == plan["id"]:
        told = {**plan, **{name: given.payload[name] for name in _SOLD if name in given.payload}}
        since = given.payload.get("since_ms")
        got = Said(given.created_at if since is None else moment_of(int(since)), terms_of(told, anchor))
    renewed = connection.execute(_RENEWED, {"account": account, "at": at}).scalar()
    said = [Said(row["since"], terms_of(dict(row), anchor)) for row in rows]
    found = sold_with(said or [Said(at, terms_of(plan, anchor))], got, renewed, at)
    return {**plan, **_fields(found)}


def terms_of(plan: TokenPlan, anchor: int) -> TokenTerms:
    """What a row says of cycles of tokens."""
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
