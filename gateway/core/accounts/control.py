"""What a control write carries: the payload of each verb that moves an account.

recharge {"amount"}, reset {}, adjust {"amount", "direction", "reason"}, block {}, unblock {},
plan {…}, define {}: the pusher reads the definition itself when it applies it.
"""

from __future__ import annotations

from collections.abc import Mapping

NO_PLAN: Mapping[str, object] = {
    "plan_id": None,
    "total": None,
    "interval": "none",
    "policy": "block",
    "rollover_max": 0,
    "admission": "available",
    "on_exhausted": "finish",
    "on_store_failure": "deny",
}


def plan_payload(plan: Mapping[str, object] | None, *, anchor: int) -> dict[str, object]:
    """Write a token plan (a row of the table; None: no plan) as the payload of verb `plan`.

    `anchor` is the day of the month cycles begin on, 1 to 31.
    """
    if plan is None:
        return {**NO_PLAN, "anchor": anchor}
    return {
        "plan_id": plan["id"],
        "total": plan["total_amount"],
        "interval": plan["reset_interval"],
        "policy": plan["overage_policy"],
        "rollover_max": plan["rollover_max"],
        "admission": plan["admission"],
        "on_exhausted": plan["on_exhausted"],
        "on_store_failure": plan["on_store_failure"],
        "anchor": anchor,
    }
