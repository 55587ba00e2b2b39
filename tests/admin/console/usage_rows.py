"""Roll-ups of calls written straight into the database, as the flusher would have added them up."""

from __future__ import annotations

from datetime import datetime

from tests.admin.conftest import Api

NANO = 10**9


def used(
    api: Api,
    at: datetime,
    cost: int,
    *,
    organization: int,
    tenant: int,
    key: int = 1,
    user: int = 0,
    model: str = "m1",
    currency: str = "USD",
    requests: int = 1,
    tokens: int = 100,
    unpriced: int = 0,
) -> None:
    """Add calls of an hour to the roll-ups of their hour and day; `cost` is in nano-units."""
    sums = {"requests": requests, "tokens": tokens, "input": tokens, "cost": cost, "unpriced": unpriced}
    none = ("refused", "cache_read", "cache_write", "output", "reasoning", "credits", "units", "estimated")
    apart = {
        "organization_id": organization, "tenant_id": tenant, "api_key_id": key, "user_id": user,
        "project_id": -1, "service_id": 0, "model": model, "currency": currency,
    }  # fmt: skip
    values = apart | sums | dict.fromkeys(none, 0)
    more = ", ".join(f"{name} = usage_rollup.{name} + excluded.{name}" for name in sums)
    api.rows(
        f"insert into usage_rollup (span, start, {', '.join(values)})"
        f" select span, date_trunc(span, %s::timestamptz, 'UTC'), {', '.join(['%s'] * len(values))}"
        f" from unnest(array['hour', 'day']) as span"
        f" on conflict on constraint usage_rollup_pkey do update set {more}",
        at, *values.values(),
    )  # fmt: skip
