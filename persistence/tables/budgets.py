"""What may be used of something in an interval, and what was."""

from __future__ import annotations

from sqlalchemy import PrimaryKeyConstraint

from persistence.tables.columns import (
    decimals,
    documents,
    flags,
    identity,
    integers,
    moments,
    refers,
    small_integers,
    table,
    texts,
)

# What is null says nothing: of any tenant, any user, and so on. Deleted ones stay, since uses speak of them.
budget = table(
    "budget",
    identity(),
    refers("organization_id", "organization"),
    texts("name"),
    refers("tenant_id?", "tenant"),
    texts("user?"),
    refers("api_key_id?", "api_key"),
    integers("project_id?"),
    texts("model?"),
    refers("service_id?", "service"),
    texts("each?", "unit"),
    # Money in the organization's currency; tokens and requests are whole.
    decimals("amount"),
    texts("interval", "time_zone"),
    small_integers("anchor_day"),
    texts("mode", "on_exhausted"),
    documents("thresholds"),
    # What the amount is until a moment, and why.
    decimals("raised_to?"),
    moments("raised_until?"),
    texts("raise_reason?"),
    moments("created_at", "updated_at", "deleted_at?"),
)

# What was used in each window, in nano-units, tokens or requests: a row for every account of an `each`, whose
# `value` is how entries name it and whose `name` says whom it is of. What was set back is in `reset` alone.
budget_use = table(
    "budget_use",
    integers("budget_id"),
    moments("start"),
    texts("value", "name"),
    integers("used", "reset"),
    moments("moved_at"),
    PrimaryKeyConstraint("budget_id", "start", "value"),
)

# What was told of an account in a window: the highest part of its amount, the largest amount that was reached
# (in what is counted), and the samples its pace is counted from.
budget_told = table(
    "budget_told",
    integers("budget_id"),
    moments("start"),
    texts("value"),
    decimals("part", "level"),
    flags("exceeded", "foreseen"),
    integers("before_used?", "seen_used?"),
    moments("before_at?", "seen_at?"),
    PrimaryKeyConstraint("budget_id", "start", "value"),
)
