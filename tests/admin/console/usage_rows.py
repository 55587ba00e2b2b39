"""Roll-ups of calls written straight into the database, as the flusher would have added them up."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.core.accounts.usage import SPANS
from gateway.core.billing.price_book import KINDS
from persistence.ledger.usage_rollup import start_of
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
    """Add calls of an hour to the roll-ups of every span; `cost` is in nano-units."""
    sums = {"requests": requests, "tokens": tokens, "input": tokens, "cost": cost, "unpriced": unpriced}
    none = ("refused", "cache_read", "cache_write", "output", "reasoning", "credits", "units", "estimated")
    apart = {
        "organization_id": organization, "tenant_id": tenant, "api_key_id": key, "user_id": user,
        "project_id": -1, "service_id": 0, "model": model, "currency": currency,
    }  # fmt: skip
    values = apart | sums | dict.fromkeys(none, 0)
    more = ", ".join(f"{name} = usage_rollup.{name} + excluded.{name}" for name in sums)
    for span, (unit, whole) in SPANS.items():
        row = values | {name: -1 if name == "project_id" else 0 for name in whole}
        api.rows(
            f"insert into usage_rollup (span, start, {', '.join(row)})"
            f" select %s, {start_of(unit)}, {', '.join(['%s'] * len(row))}"
            " from (select %s::timestamptz) as n (start)"
            f" on conflict on constraint usage_rollup_pkey do update set {more}",
            span, *row.values(), at,
        )  # fmt: skip


def call(api: Api, request_id: str, *, organization: int, tenant: int, **fields: object) -> int:
    """Write one call into the journal and answer its number; fields by the names of its columns."""
    zeros = dict.fromkeys((*KINDS, "tokens", "credits", "units", "duration_ms"), 0)
    values: dict[str, object] = {
        "request_id": request_id, "organization_id": organization, "tenant_id": tenant, "api_key_id": 1,
        "status": 200, "streamed": False, "estimated": False, "created_at": datetime.now(UTC),
        **zeros, **fields,
    }  # fmt: skip
    made = api.rows(
        f"insert into call ({', '.join(values)}) values ({', '.join(['%s'] * len(values))}) returning id",
        *values.values(),
    )
    return int(made[0][0])
