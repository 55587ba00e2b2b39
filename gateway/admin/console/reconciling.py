"""Reconciliation: the last comparison of counters and ledger, and a new one on demand."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.admin import reconciliation
from gateway.admin.console.desk import Desk, Posted, Reading, Writing, see
from gateway.admin.console.forms import Form
from gateway.admin.console.sessions import Signed

ITEMS_SHOWN_MAX = 500


def show_with(desk: Desk) -> Reading:
    """Make the page's handler."""

    async def show(request: web.Request, signed: Signed) -> web.Response:
        last = await reconciliation.last(desk.ports)
        items: Any = (last or {}).get("items", [])
        return desk.answer(
            request,
            signed,
            "reconciliation.html",
            last=last,
            items=[{**item, "href": _address(item["account"])} for item in items[:ITEMS_SHOWN_MAX]],
            more=max(0, len(items) - ITEMS_SHOWN_MAX),
            forms=[
                Form("/reconciliation", "Run now", "Run now", note="Compares every account."),
                Form(
                    "/reconciliation/repair", "Run and repair", "Run and repair", is_dangerous=True,
                    note="Makes each drift good by an appended adjust or correction.",
                ),
            ] if signed.actor.role == "admin" else [],
        )  # fmt: skip

    return show


def run_with(desk: Desk, *, repair: bool) -> Writing:
    """Make the handler of a run."""

    async def run(request: web.Request, signed: Signed, _posted: Posted) -> web.Response:
        await reconciliation.run(desk.ports, request, signed.actor, repair=repair)
        return see("/reconciliation?done=reconciled")

    return run


def _address(account: str) -> str:
    kind, _, number = account.partition(":")
    if not number.isdigit():
        return ""
    return f"/tenants/{number}" if kind == "tenant" else f"/organizations/{number}"
