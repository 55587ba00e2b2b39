"""What the pages of a tenant and an organization show beyond their fields: quota, use, keys, ledger."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.console import charts, lists
from gateway.admin.console.cells import label_of
from gateway.admin.console.desk import Desk, query
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.console.sessions import Signed
from gateway.admin.resources.invoices import InvoiceLine
from gateway.core.accounts.administration import Row

DAYS = 30
DAY_ROWS_MAX = 5_000
# So many of a tenant's latest movements are looked at to say which models it used.
MODEL_ROWS_MAX = 5_000
PREVIEW_ROWS = 10
LEDGER_ROWS = 25
# What an organization's page shows the first rows of.
PREVIEWS = ("tenants", "credit-additions", "organization-subscriptions", "invoices", "organization-services")
# Tenants times days whose use is added up for one chart: of 20,000 tenants, the last 10 days.
TENANT_DAYS_MAX = 200_000
LINES_A_PAGE = 100

_POSITION = re.compile(r"[0-9]{1,9}", re.ASCII)

LEDGER = Screen(
    "", "token-ledger", "Ledger", "movement",
    ("created_at", "transaction_type", "change", "total_remaining", "service_id", "model", "request_id"),
    empty="No movement yet.", filters=("transaction_type", "direction", "request_id"), has_page=False,
    spans_time=True,
)  # fmt: skip


async def about_tenant(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """A tenant's quota, its use of the last days, its keys and its ledger."""
    tenant_id = int(str(row["id"]))
    by_model = request.query.get("by") != "service"
    [with_quota], keys, ledger, usage = await asyncio.gather(
        lists.with_quotas(desk, [row]),
        _preview(desk, "api-keys", tenant_id=tenant_id),
        lists.page_of(desk, LEDGER, request, rows_max=LEDGER_ROWS, tenant_id=str(tenant_id)),
        _tenant_use(desk, tenant_id, by_model=by_model),
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
        "chart": usage,
        "by": "model" if by_model else "service",
    }


async def quota(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /tenants/{id}/quota`: the account alone, asked for every other second."""
    [row] = await lists.with_quotas(desk, [{"id": row_id(request)}])
    return desk.answer(request, signed, "quota.html", quota=row["quota"])


async def about_organization(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """An organization's credits, tenants, subscription, invoices and use of the last days."""
    organization_id = int(str(row["id"]))
    measure = request.query.get("of", "")
    measure = measure if measure in {"tokens", "credits", "usage_amount"} else "tokens"
    usage, *previews = await asyncio.gather(
        _organization_use(desk, organization_id, measure),
        *(_preview(desk, name, organization_id=organization_id) for name in PREVIEWS),
    )
    return {"previews": previews, "chart": usage, "of": measure}


async def _preview(desk: Desk, name: str, **filters: int) -> dict[str, Any]:
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


async def _tenant_use(desk: Desk, tenant_id: int, *, by_model: bool) -> charts.Chart:
    since, until = _last_days()
    figures = desk.ports.figures
    if by_model:
        days, models = await asyncio.gather(
            figures.tenant_days(tenant_id, since, DAY_ROWS_MAX),
            figures.tenant_models(tenant_id, since, MODEL_ROWS_MAX),
        )
        amounts = charts.by_model(days, models)
    else:
        days = await figures.tenant_days(tenant_id, since, DAY_ROWS_MAX)
        amounts = charts.by_service(days, await _services(desk, days), "tokens")
    return charts.stacked(amounts, charts.requests_by_day(days), since=since, until=until)


async def _organization_use(desk: Desk, organization_id: int, measure: str) -> charts.Chart:
    tenants = await desk.ports.figures.tenants_of(organization_id, TENANT_DAYS_MAX)
    since, until = _last_days(max(1, min(DAYS, TENANT_DAYS_MAX // max(1, tenants))))
    days = await desk.ports.figures.organization_days(organization_id, since, DAY_ROWS_MAX)
    amounts = charts.by_service(days, await _services(desk, days), measure)
    return charts.stacked(amounts, charts.requests_by_day(days), since=since, until=until)


async def _services(desk: Desk, days: Sequence[Row]) -> Mapping[int, str]:
    return await desk.ports.figures.names("services", {int(str(row["service_id"])) for row in days})


def _last_days(days: int = DAYS) -> tuple[date, date]:
    until = datetime.now(UTC).date()
    return until - timedelta(days=days - 1), until


async def about_invoice(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """Some of an invoice's lines, in order, and the names they refer to."""
    sent = request.query.get("after", "")
    after = int(sent) if _POSITION.fullmatch(sent) else 0
    lines = await desk.ports.figures.invoice_lines(int(str(row["id"])), after, LINES_A_PAGE + 1)
    shown = [InvoiceLine.model_validate(line).model_dump(mode="json") for line in lines[:LINES_A_PAGE]]
    return {
        "shown": shown,
        "is_first": after == 0,
        "next": f"{request.path}?after={shown[-1]['position']}" if len(lines) > LINES_A_PAGE else "",
        "line_names": await desk.names(
            {
                "services": {line["service_id"] for line in shown if line["service_id"]},
                "tenants": {line["tenant_id"] for line in shown if line["tenant_id"]},
            }
        ),
    }
