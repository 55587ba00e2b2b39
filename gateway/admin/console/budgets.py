"""Budgets on pages: what is used of one, by whom most, and those that are of a tenant, a key or a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin import budgets
from gateway.admin.api.views import row_id
from gateway.admin.console import budget_use, lists
from gateway.admin.console.cells import label_of
from gateway.admin.console.desk import Desk, query
from gateway.admin.console.screens import SCREENS
from gateway.admin.console.sessions import Signed
from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import ALL_OTHERS
from gateway.core.accounts.selectors import SELECTING

ACCOUNTS_SHOWN = 50
PREVIEW_ROWS = 10
SCREEN = SCREENS["budgets"]


async def about_budget(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
    """What is used of a budget; of one with `each`, by whom most."""
    targets = {name: SCREEN.resource.target(name) for name in SELECTING}
    ids = {targets[name]: {int(str(row[name]))} for name in SELECTING if targets[name] and row[name]}
    ids["organizations"] = {int(str(row["organization_id"]))}
    names = await desk.names(ids)
    return {
        "use": budget_use.use_of(row),
        "of": budget_use.selector(row, names, targets),
        "organization": names.get(("organizations", int(str(row["organization_id"]))), ""),
        **await _accounts(desk, row),
    }


async def use(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /budgets/{id}/use`: what is used alone, asked for every other second."""
    row = await desk.operations["budgets"].show(row_id(request))
    return desk.answer(
        request, signed, "use.html", row=row, use=budget_use.use_of(row), **await _accounts(desk, row)
    )


async def of_account(
    desk: Desk, organization_id: int, owner: Mapping[str, object], each: str = "", whose: str = ""
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


async def _own(desk: Desk, organization_id: int, each: str, whose: str) -> Sequence[Row]:
    """Budgets that give everybody of a kind an amount, with what somebody has used of it."""
    wanted = query(PREVIEW_ROWS, organization_id=organization_id, each=each)
    page = await desk.ports.store.page("budgets", wanted)
    return [SCREEN.resource.render(row) for row in await budgets.own(desk.ports, page.rows, whose)]


async def _accounts(desk: Desk, row: Row) -> dict[str, Any]:
    """Whose accounts of a budget used most, each with its use, and whether there are more."""
    if row["each"] is None:
        return {"accounts": (), "accounts_more": 0}
    stored = await desk.ports.store.get("budgets", int(str(row["id"])))
    found = await budgets.most_used(desk.ports, stored, ACCOUNTS_SHOWN + 1)
    keys = {int(who) for each in found if row["each"] == "key" and (who := str(each["who"])).isdecimal()}
    names = await desk.names({"api-keys": keys})
    called = {str(key_id): name for (_, key_id), name in names.items()}
    shown = [
        (who, ALL_OTHERS if each["shared"] else called.get(who, ""), budget_use.use_of(row, each))
        for each in found[:ACCOUNTS_SHOWN]
        for who in (str(each["who"]),)
    ]
    return {"accounts": shown, "accounts_more": ACCOUNTS_SHOWN if len(found) > ACCOUNTS_SHOWN else 0}
