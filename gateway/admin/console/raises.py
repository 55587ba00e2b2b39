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
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import KEY, USER
from gateway.errors import NotFound


async def about_raise(desk: ConsoleShell, _: web.Request, row: Row) -> Mapping[str, Any]:
    """Return the use of the raise request's budget, and what would be left after the raise."""
    return {"figures": await raise_figures(desk.ports, row)}


async def raise_figures(ports: AdminPorts, row: Row) -> list[tuple[str, str]]:
    """Return labels and amounts for deciding a raise request: limit, use, and the rest after the raise.

    If the budget has an account for each user or key, the amounts are those of the requester's account; if
    that is unknown, only the limit is returned.
    """
    try:
        budget = await ports.store.get("budgets", int(str(row["budget_id"])))
    except NotFound:
        return []
    if budget["each"] is None:
        [now] = await live.overlay_budgets(ports, [budget])
    else:
        who = await _asker(ports, str(budget["each"]), str(row["requested_by"]))
        if not who:
            return [("Limit", formatting.limit_text(RESOURCES["budgets"].render(budget)))]
        [now] = await live.own_budgets(ports, [budget], who)
    told = RESOURCES["budgets"].render(now)
    used, held = Decimal(str(told["used"])), Decimal(str(told["held"]))
    left = Decimal(str(row["amount"])) - used - held
    after = formatting.amount(told, max(left, Decimal(0)))
    return [
        ("Limit", formatting.limit_text(told)),
        ("Used", formatting.amount(told, used)),
        *([("Held by calls in flight", formatting.amount(told, held))] if held else []),
        ("Left after the raise", after if left > 0 else f"{after}: its calls would still be refused"),
    ]


async def _asker(ports: AdminPorts, each: str, scope: str) -> str:
    """Return the user or key that made a request, for a budget with accounts for `each`; "" if unknown.

    `scope` is the requester as "key:id" or "token:id".
    """
    kind, _, number = scope.partition(":")
    if kind not in {"key", "token"} or not number.isdigit():
        return ""
    if kind == "key" and each == KEY:
        return number
    if each != USER:
        return ""
    try:
        if kind == "key":
            return str((await ports.store.get("api-keys", int(number)))["user"] or "")
        user_id = (await ports.store.get("admin-tokens", int(number)))["user_id"]
        user = {} if user_id is None else await ports.store.get("users", int(str(user_id)))
        return str(user.get("external_id", ""))
    except NotFound:
        return ""
