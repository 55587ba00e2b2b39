"""The page of a raise request: the use of its budget, and what would be left after the raise."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from aiohttp import web

from gateway.admin import live
from gateway.admin.console import formatting
from gateway.admin.console.home import ConsoleShell
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.budgets import render_budget
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import Row
from gateway.errors import NotFound


async def about_raise(desk: ConsoleShell, _: web.Request, row: Row) -> Mapping[str, Any]:
    """Return the use of the raise request's budget, and what would be left after the raise."""
    return {"figures": await raise_figures(desk.ports, row)}


async def raise_figures(ports: AdminPorts, row: Row) -> list[tuple[str, str]]:
    """Return labels and amounts for deciding a raise request: limit, use, and the rest after the raise.

    Of a budget with `each` the amounts are those of the owner to be raised. For a request without `who`, only
    the limit is returned.
    """
    try:
        budget = await ports.store.get("budgets", int(str(row["budget_id"])))
    except NotFound:
        return []
    kind, who = budget["each"], str(row["who"] or "")
    if kind is not None and not who:
        return [("Limit", formatting.limit_text(RESOURCES["budgets"].render(budget)))]
    if kind is None:
        [now] = await live.overlay_budgets(ports, [budget])
    else:
        [now] = await live.own_budgets(ports, [budget], who)
    budget = render_budget(now)
    used, held = Decimal(str(budget["used"])), Decimal(str(budget["held"]))
    left = Decimal(str(row["amount"])) - used - held
    after = formatting.amount(budget, max(left, Decimal(0)))
    return [
        *([] if kind is None else [("Whose", f"{kind} {await _name_of(ports, kind, who)}")]),
        ("Limit", formatting.limit_text(budget)),
        ("Used", formatting.amount(budget, used)),
        *([("Held by calls in flight", formatting.amount(budget, held))] if held else []),
        ("Left after the raise", after if left > 0 else f"{after}: its calls would still be refused"),
    ]


async def _name_of(ports: AdminPorts, kind: object, who: str) -> str:
    """Return the name of an API key or tenant `who` with its id; return any other `who` unchanged."""
    resource = formatting.NAMED_OWNERS.get(str(kind))
    if resource is None:
        return who
    try:
        return f"{(await ports.store.get(resource, int(who)))['name']} ({who})"
    except NotFound:
        return who
