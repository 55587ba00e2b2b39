"""What the pages of accounts show beyond their fields: what they spent, quota, use, keys, ledger."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin import live
from gateway.admin.api.views import row_id
from gateway.admin.console import formatting, lists, reports
from gateway.admin.console.formatting import label_of
from gateway.admin.console.home import ConsoleShell, SignedInPerson, query
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.resources.invoices import InvoiceLine
from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import ALL_OTHERS, SELECTING
from gateway.core.accounts.usage import GROUPS, UsageQuery, end_of
from gateway.core.billing.finance import ReportPeriod
from gateway.core.billing.money import EXACT, ONE_NANO
from gateway.core.billing.price_book import (
    KINDS,
    PARTS,
    TOKENS_A_PRICE,
    USES_A_PRICE,
    CostLine,
    lines,
    read_price,
)
from gateway.errors import NotFound
from gateway.feature import features

# What a call's page shows beyond its fields: what it used by kind, and its cost line by line.


# What a price is of.
PER = {TOKENS_A_PRICE: "a million", USES_A_PRICE: "a thousand", 1: "a call"}


async def about_call(desk: ConsoleShell, _: web.Request, row: Row) -> Mapping[str, Any]:
    """A call's tokens by kind, its cost by the price it was admitted at, and where it left rows."""
    usage: Any = row["usage"]
    tools: Mapping[str, int] = usage.get("tools") or {}
    price = await _price(desk, row["price_id"])
    found: Sequence[CostLine] = ()
    if price is not None:
        counts = [usage.get(kind, 0) for kind in KINDS]
        tier = str(row["service_tier"] or "")
        found = lines(read_price(price).vector, counts, tools, tier)
    owners = {"tenants": "tenant_id", "api-keys": "api_key_id", "users": "user_id"}
    names = await desk.names({name: {int(str(row[of]))} for name, of in owners.items() if row[of]})
    summed = sum((line.amount for line in found), Decimal(0))
    return {
        "kinds": [(kind, usage[kind], kind in PARTS) for kind in KINDS if usage.get(kind)],
        "tools": sorted(tools.items()),
        "unknown": usage.get("unknown"),
        "price": price,
        "lines": [(line, PER[line.per]) for line in found],
        "adds_up": row["cost"] is not None and _rounded(summed) == Decimal(str(row["cost"])),
        "called": {name: text for (name, _), text in names.items()},
        "ledgers": [
            ("Token ledger", f"/tenants/{row['tenant_id']}?request_id={row['request_id']}#ledger"),
            ("Credit transactions", f"/credit-transactions?request_id={row['request_id']}"),
            ("Feature usage", f"/feature-usage?request_id={row['request_id']}"),
        ],
    }


async def _price(desk: ConsoleShell, price_id: object) -> Row | None:
    if not isinstance(price_id, int):
        return None
    try:
        return await desk.ports.store.get("prices", price_id)
    except NotFound:
        return None


def _rounded(amount: Decimal) -> Decimal:
    """To whole nano-units, half up, as a call's cost is rounded once."""
    return amount.quantize(ONE_NANO, "ROUND_HALF_UP", EXACT)


# Budgets on pages: what is used of one, by whom most, and those that are of a tenant, a key or a user.


ACCOUNTS_SHOWN = 50
SCREEN = SCREENS["budgets"]


async def about_budget(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """The use of a budget; of one with `each`, by whom most."""
    targets = {name: SCREEN.resource.target(name) for name in SELECTING}
    ids = {targets[name]: {int(str(row[name]))} for name in SELECTING if targets[name] and row[name]}
    ids["organizations"] = {int(str(row["organization_id"]))}
    names = await desk.names(ids)
    return {
        "use": formatting.use_of(row),
        "of": formatting.budget_selector(row, names, targets),
        "organization": names.get(("organizations", int(str(row["organization_id"]))), ""),
        **await _accounts(desk, row),
    }


async def budget_use(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /budgets/{id}/use`: what is used alone, asked for every other second."""
    row = await desk.operations["budgets"].show(row_id(request))
    return desk.answer(
        request, signed, "use.html", row=row, use=formatting.use_of(row), **await _accounts(desk, row)
    )


async def of_account(
    desk: ConsoleShell, organization_id: int, owner: Mapping[str, object], each: str = "", whose: str = ""
) -> dict[str, Any]:
    """Budgets that name somebody, and somebody's own account of those with `each`."""
    named, more = await desk.operations["budgets"].list(query(PREVIEW_ROWS, newest_first=False, **owner))
    rows = [*named, *(await _own(desk, organization_id, each, whose) if each else ())]
    columns = [at for at, column in enumerate(SCREEN.columns) if column not in {"organization_id", "of"}]
    return {
        "screen": SCREEN,
        "labels": [label_of(SCREEN.columns[at]) for at in columns],
        "columns": columns,
        "lines": await lists.lines_of(desk, SCREEN, rows),
        "all": f"/budgets?{urlencode(owner)}" if more else "",
        "new": f"/budgets/new?{urlencode({'organization_id': organization_id, **owner})}",
    }


async def _own(desk: ConsoleShell, organization_id: int, each: str, whose: str) -> Sequence[Row]:
    """Budgets that give everybody of a kind an amount, with what somebody has used of it."""
    wanted = query(PREVIEW_ROWS, organization_id=organization_id, each=each)
    page = await desk.ports.store.page("budgets", wanted)
    return [SCREEN.resource.render(row) for row in await live.own_budgets(desk.ports, page.rows, whose)]


async def _accounts(desk: ConsoleShell, row: Row) -> dict[str, Any]:
    """Whose accounts of a budget used most, each with its use, and whether there are more."""
    if row["each"] is None:
        return {"accounts": (), "accounts_more": 0}
    stored = await desk.ports.store.get("budgets", int(str(row["id"])))
    found = await live.most_used_accounts(desk.ports, stored, ACCOUNTS_SHOWN + 1)
    keys = {int(who) for each in found if row["each"] == "key" and (who := str(each["who"])).isdecimal()}
    names = await desk.names({"api-keys": keys})
    called = {str(key_id): name for (_, key_id), name in names.items()}
    shown = [
        (who, ALL_OTHERS if each["shared"] else called.get(who, ""), formatting.use_of(row, each))
        for each in found[:ACCOUNTS_SHOWN]
        for who in (str(each["who"]),)
    ]
    return {"accounts": shown, "accounts_more": ACCOUNTS_SHOWN if len(found) > ACCOUNTS_SHOWN else 0}


DAYS = 30
DAY_ROWS_MAX = 5_000
DAY = timedelta(days=1)
# The groups of an account's cost, and how many parts of it a page names.
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


async def about_tenant(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
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
        of_account(desk, int(str(row["organization_id"])), {"tenant_id": tenant_id}),
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


async def about_key(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """What an API key's calls cost, and its budgets."""
    key_id = int(str(row["id"]))
    tenant = await desk.ports.store.get("tenants", int(str(row["tenant_id"])))
    cost, its_budgets = await asyncio.gather(
        _cost(desk, request, "api_key_id", key_id),
        of_account(desk, int(str(tenant["organization_id"])), {"api_key_id": key_id}, "key", str(key_id)),
    )
    return {**cost, "budgets": its_budgets}


async def about_user(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """What a user's calls cost, and a user's budgets; staff has none."""
    cost = await _cost(desk, request, "user_id", int(str(row["id"])))
    if row["organization_id"] is None:
        return {**cost, "budgets": None}
    organization_id, user = int(str(row["organization_id"])), str(row["external_id"])
    owner = {"organization_id": organization_id, "user": user}
    return {**cost, "budgets": await of_account(desk, organization_id, owner, "user", user)}


async def quota(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /tenants/{id}/quota`: the account alone, asked for every other second."""
    [row] = await lists.with_quotas(desk, [{"id": row_id(request)}])
    if row["quota"] is None:
        raise NotFound
    return desk.answer(request, signed, "quota.html", quota=row["quota"])


async def about_organization(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """An organization's spend, credits, tenants, subscription, invoices and use of the last days."""
    organization_id = int(str(row["id"]))
    measure = request.query.get("of", "")
    measure = measure if measure in {"tokens", "credits", "usage_amount"} else "tokens"
    until = end_of("day", datetime.now(UTC))
    owner = {"organization_id": organization_id}
    asked = UsageQuery((until - DAY).replace(day=1), until, "none", (), owner, 0)
    account = ReportPeriod(until, organization_id=organization_id)
    usage, spent, balances, *previews = await asyncio.gather(
        _organization_use(desk, organization_id, measure),
        reports.spent(desk.ports.store, asked, "cost"),
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


async def preview(desk: ConsoleShell, name: str, **filters: int) -> dict[str, Any]:
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


async def _cost(desk: ConsoleShell, request: web.Request, column: str, row_id: int) -> dict[str, Any]:
    """What calls of one account came to this month and in the last days, by model or whatever is asked."""
    until = end_of("day", datetime.now(UTC))
    measure, group = request.query.get("of", ""), request.query.get("by", "")
    measure = measure if measure in reports.MEASURES else reports.MEASURES[0]
    groups = {each: title for each, title in COST_GROUPS.items() if GROUPS[each] != column}
    group = group if group in groups else next(iter(groups))
    days = UsageQuery(until - DAYS * DAY, until, "day", (group,), {column: row_id}, 0)
    month = replace(days, since=(until - DAY).replace(day=1), interval="none", groups=())
    found, this_month = await asyncio.gather(
        reports.spent(desk.ports.store, days, measure), reports.spent(desk.ports.store, month, measure)
    )
    return {
        "cost": found,
        "month": this_month.totals,
        "of": measure,
        "by": group,
        "cost_groups": groups,
        "parts_of_cost": [(reports.name_of(each, (group,)), each) for each in found.groups[:PARTS_MAX]],
        "parts_more": max(0, len(found.groups) - PARTS_MAX),
        "filter": f"{column}={row_id}",
    }


async def _organization_use(desk: ConsoleShell, organization_id: int, measure: str) -> formatting.Chart:
    tenants = await desk.ports.figures.tenants_of(organization_id, TENANT_DAYS_MAX)
    since, until = _last_days(max(1, min(DAYS, TENANT_DAYS_MAX // max(1, tenants))))
    days = await desk.ports.figures.organization_days(organization_id, since, DAY_ROWS_MAX)
    names = await desk.ports.figures.names("services", {int(str(row["service_id"])) for row in days})
    return formatting.stacked(
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


# An invoice's page: its lines, what of it was paid, and what became of it, with what gives it back.


LINES_A_PAGE = 100
# Notes, and payments, that the history of an invoice tells of.
NOTES_TOLD_MAX = 50
PAYMENTS_TOLD_MAX = 200
_POSITION = re.compile("[0-9]{1,9}", re.ASCII)


class TimelineEntry(NamedTuple):
    """One step of an invoice's life: when, what, the state it brought, and the page that tells more."""

    at: datetime
    what: str
    state: str = ""
    href: str = ""


# A feature's part of an invoice's life, by the invoice's id.
InvoiceHistory = Callable[[ConsoleShell, int], Awaitable[Sequence[TimelineEntry]]]


async def about_invoice(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """Some of an invoice's lines, in order, the names they refer to, what of it was paid, and its history."""
    sent = request.query.get("after", "")
    after = int(sent) if _POSITION.fullmatch(sent) else 0
    invoice_id = int(str(row["id"]))
    lines = await desk.ports.figures.invoice_lines(invoice_id, after, LINES_A_PAGE + 1)
    payments = None
    if row["status"] == "finalized" and after == 0:
        payments = await preview(desk, "payments", invoice_id=invoice_id)
    told = [InvoiceLine.model_validate(line).model_dump(mode="json") for line in lines[:LINES_A_PAGE]]
    return {
        "shown": told,
        "payments": payments,
        "history": await _history(desk, row) if after == 0 else [],
        "is_first": after == 0,
        "next": f"{request.path}?after={told[-1]['position']}" if len(lines) > LINES_A_PAGE else "",
        "line_names": await desk.names(
            {
                "services": {line["service_id"] for line in told if line["service_id"]},
                "tenants": {line["tenant_id"] for line in told if line["tenant_id"]},
            }
        ),
    }


async def _history(desk: ConsoleShell, row: Row) -> list[TimelineEntry]:
    """Its history, the first thing first; payments and notes lead to their pages."""
    invoice_id = int(str(row["id"]))
    found = list(_of_itself(row))
    if corrects := row["corrects_id"]:
        corrected = await desk.operations["invoices"].show(int(str(corrects)))
        found[0] = found[0]._replace(
            what=f"{found[0].what}, of invoice {corrected['number']}", href=f"/invoices/{corrects}"
        )
    notes, _ = await desk.operations["invoices"].list(query(NOTES_TOLD_MAX, corrects_id=invoice_id))
    for note in notes:
        amount = formatting.money(note["total_amount"], str(note["currency"]))
        what = f"Credit note {note['number'] or '(draft)'}: {amount}"
        at = note["finalized_at"] or note["created_at"]
        found.append(TimelineEntry(moment(at), what, str(note["status"]), f"/invoices/{note['id']}"))
    if row["status"] == "finalized":
        paid, _ = await desk.operations["payments"].list(query(PAYMENTS_TOLD_MAX, invoice_id=invoice_id))
        for payment in paid:
            amount = formatting.money(payment["amount"], str(payment["currency"]))
            what = "Paid" if Decimal(str(payment["amount"])) > 0 else "Paid back"
            said = f"{what}: {amount}, {payment['reference']}"
            found.append(TimelineEntry(moment(payment["created_at"]), said, "", f"/payments/{payment['id']}"))
    of: dict[str, Any] = {"note_id" if row["kind"] == "credit_note" else "invoice_id": invoice_id}
    applied, _ = await desk.operations["note-applications"].list(query(PAYMENTS_TOLD_MAX, **of))
    for each in applied:
        amount = formatting.money(each["amount"], str(each["currency"]))
        said, href = f"Credit applied: {amount}", f"/note-applications/{each['id']}"
        found.append(TimelineEntry(moment(each["created_at"]), said, str(each["reason"]), href))
    for told in (told for feature in features() for told in feature.invoice_history()):
        found += await told(desk, invoice_id)
    return sorted(found, key=lambda each: each.at)


def _of_itself(row: Row) -> Iterator[TimelineEntry]:
    yield TimelineEntry(moment(row["created_at"]), "Drafted", "draft")
    if row["finalized_at"]:
        due = f", due on {row['due_date']}" if row["due_date"] else ""
        yield TimelineEntry(moment(row["finalized_at"]), f"Final as {row['number']}{due}", "finalized")
    if row["uncollectible_at"]:
        yield TimelineEntry(moment(row["uncollectible_at"]), "Given up", "uncollectible")
    if row["voided_at"]:
        yield TimelineEntry(moment(row["voided_at"]), "Made void", "void")


def moment(value: object) -> datetime:
    """A time as a row has it."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
