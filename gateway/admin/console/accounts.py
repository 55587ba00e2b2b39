"""What the pages of accounts show beyond their fields: what they spent, quota, use, keys, ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.console import budgets, charts, lists, spending
from gateway.admin.console.cells import label_of
from gateway.admin.console.desk import Desk, query
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.console.sessions import Signed
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import GROUPS, UsageQuery, end_of
from gateway.core.billing.finance import Asked
from gateway.errors import NotFound

DAYS = 30
DAY_ROWS_MAX = 5_000
DAY = timedelta(days=1)
# What an account's cost is told apart by, and how many parts of it a page names.
COST_GROUPS = {
    "model": "model",
    "service": "service",
    "user": "user",
    "api_key": "API key",
    "project": "project",
}
PARTS_MAX = 12
PREVIEW_ROWS = 10
# An organization has one, and what it has from before it had another.
CURRENCIES_MAX = 10
LEDGER_ROWS = 25
# What an organization's page shows the first rows of.
PREVIEWS = (
    "tenants",
    "budgets",
    "credit-additions",
    "organization-subscriptions",
    "invoices",
    "organization-services",
)
# Tenants times days whose use is added up for one chart: of 20,000 tenants, the last 10 days.
TENANT_DAYS_MAX = 200_000


LEDGER = Screen(
    "", "token-ledger", "Ledger", "movement",
    ("created_at", "transaction_type", "change", "total_remaining", "service_id", "model", "request_id"),
    empty="No movement yet.", filters=("transaction_type", "direction", "request_id"), has_page=False,
    spans_time=True,
)  # fmt: skip


async def about_tenant(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """A tenant's quota, what it spent in the last days, its keys and its ledger."""
    tenant_id = int(str(row["id"]))
    [with_quota], keys, ledger, cost, its_budgets = await asyncio.gather(
        lists.with_quotas(desk, [row]),
        preview(desk, "api-keys", tenant_id=tenant_id),
        lists.page_of(
            desk,
            LEDGER,
            request,
            rows_max=LEDGER_ROWS,
            file=f"/tenants/{tenant_id}/ledger.csv",
            tenant_id=str(tenant_id),
        ),
        _cost(desk, request, "tenant_id", tenant_id),
        budgets.of_account(desk, int(str(row["organization_id"])), {"tenant_id": tenant_id}),
    )
    quota: Any = with_quota["quota"]
    owner: Any = row["organization_id"]
    plan: Any = quota["plan_id"] if quota else None
    names = await desk.names({"organizations": {owner}, "token-plans": {plan} - {None}})
    return {
        "quota": quota,
        "organization": names.get(("organizations", owner), ""),
        "plan": names.get(("token-plans", plan), ""),
        "keys": keys,
        "ledger": ledger,
        "budgets": its_budgets,
        **cost,
    }


async def about_key(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """What an API key's calls cost, and its budgets."""
    key_id = int(str(row["id"]))
    tenant = await desk.ports.store.get("tenants", int(str(row["tenant_id"])))
    cost, its_budgets = await asyncio.gather(
        _cost(desk, request, "api_key_id", key_id),
        budgets.of_account(
            desk, int(str(tenant["organization_id"])), {"api_key_id": key_id}, "key", str(key_id)
        ),
    )
    return {**cost, "budgets": its_budgets}


async def about_user(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """What a user's calls cost, and a user's budgets; staff has none."""
    cost = await _cost(desk, request, "user_id", int(str(row["id"])))
    if row["organization_id"] is None:
        return {**cost, "budgets": None}
    organization_id, user = int(str(row["organization_id"])), str(row["external_id"])
    owner = {"organization_id": organization_id, "user": user}
    return {**cost, "budgets": await budgets.of_account(desk, organization_id, owner, "user", user)}


async def quota(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /tenants/{id}/quota`: the account alone, asked for every other second."""
    [row] = await lists.with_quotas(desk, [{"id": row_id(request)}])
    if row["quota"] is None:
        raise NotFound
    return desk.answer(request, signed, "quota.html", quota=row["quota"])


async def about_organization(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """An organization's spend, credits, tenants, subscription, invoices and use of the last days."""
    organization_id = int(str(row["id"]))
    measure = request.query.get("of", "")
    measure = measure if measure in {"tokens", "credits", "usage_amount"} else "tokens"
    until = end_of("day", datetime.now(UTC))
    owner = {"organization_id": organization_id}
    asked = UsageQuery((until - DAY).replace(day=1), until, "none", (), owner, 0)
    account = Asked(until, organization_id=organization_id)
    usage, spent, balances, *previews = await asyncio.gather(
        _organization_use(desk, organization_id, measure),
        spending.spent(desk.ports.store, asked, "cost"),
        desk.ports.store.report("balances", account, 0, CURRENCIES_MAX),
        *(preview(desk, name, organization_id=organization_id) for name in PREVIEWS),
    )
    return {
        "previews": previews,
        "chart": usage,
        "of": measure,
        "month": spent.totals,
        "balances": balances,
    }


async def preview(desk: Desk, name: str, **filters: int) -> dict[str, Any]:
    """The first rows of a list that belongs to a page, and where all of them are."""
    screen = SCREENS[name]
    wanted = query(PREVIEW_ROWS, newest_first=screen.newest_first, **filters)
    rows, more = await desk.operations[name].list(wanted)
    [(owner, owner_id)] = filters.items()
    columns = [index for index, column in enumerate(screen.columns) if column != owner]
    lines = await lists.lines_of(desk, screen, rows)
    return {
        "screen": screen,
        "labels": [label_of(screen.columns[index]) for index in columns],
        "columns": columns,
        "lines": lines,
        "all": f"/{name}?{owner}={owner_id}" if more else "",
        "new": f"/{name}/new?{owner}={owner_id}",
    }


async def _cost(desk: Desk, request: web.Request, column: str, row_id: int) -> dict[str, Any]:
    """What calls of one account came to this month and in the last days, by model or whatever is asked."""
    until = end_of("day", datetime.now(UTC))
    measure, group = request.query.get("of", ""), request.query.get("by", "")
    measure = measure if measure in spending.MEASURES else spending.MEASURES[0]
    groups = {each: title for each, title in COST_GROUPS.items() if GROUPS[each] != column}
    group = group if group in groups else next(iter(groups))
    days = UsageQuery(until - DAYS * DAY, until, "day", (group,), {column: row_id}, 0)
    month = replace(days, since=(until - DAY).replace(day=1), interval="none", groups=())
    found, this_month = await asyncio.gather(
        spending.spent(desk.ports.store, days, measure), spending.spent(desk.ports.store, month, measure)
    )
    return {
        "cost": found,
        "month": this_month.totals,
        "of": measure,
        "by": group,
        "cost_groups": groups,
        "parts_of_cost": [(spending.name_of(each, (group,)), each) for each in found.groups[:PARTS_MAX]],
        "parts_more": max(0, len(found.groups) - PARTS_MAX),
        "filter": f"{column}={row_id}",
    }


async def _organization_use(desk: Desk, organization_id: int, measure: str) -> charts.Chart:
    tenants = await desk.ports.figures.tenants_of(organization_id, TENANT_DAYS_MAX)
    since, until = _last_days(max(1, min(DAYS, TENANT_DAYS_MAX // max(1, tenants))))
    days = await desk.ports.figures.organization_days(organization_id, since, DAY_ROWS_MAX)
    names = await desk.ports.figures.names("services", {int(str(row["service_id"])) for row in days})
    return charts.stacked(
        [(row["day"], row["service_id"], row[measure]) for row in days],  # type: ignore[misc]  # roll-ups have a day and counts
        [since + n * DAY for n in range((until - since).days + 1)],
        {
            row["service_id"]: names.get(int(str(row["service_id"])), f"service {row['service_id']}")
            for row in days
        },
        unit="units" if measure == "usage_amount" else measure,
    )


def _last_days(days: int = DAYS) -> tuple[date, date]:
    until = datetime.now(UTC).date()
    return until - timedelta(days=days - 1), until
