"""What states had otherwise in layouts before: the order of their fields. Pure.

In place of a tenant's limit stood what remained of it, and in place of used credits the balance.
"""

from __future__ import annotations

# The layout that put windows first.
REORDERED = 132
_HEAD = "layout flags version rpm tpm concurrency requests_used tokens_used at inflight"
ORDERS = {
    "TENANT": f"{_HEAD} total limit held used cycle next_reset anchor last_reset seq ledger_at plan_id"
    " reset_interval overage_policy admission on_exhausted on_store_failure rollover_max total_amount"
    " user_rpm user_tpm user_concurrency tenant_id organization_id",
    "ORGANIZATION": f"{_HEAD} credits_used credits_held credit_limit credit_seq ahead credit_at"
    " cap spent spend_held month spend_seq spend_at organization_id",
}
