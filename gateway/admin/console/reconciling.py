"""Reconciliation: the last comparison of counters and ledger, and a new one on demand."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.admin.api import reconciliation
from gateway.admin.console.desk import Desk, Posted, see
from gateway.admin.console.forms import Form
from gateway.admin.console.sessions import Signed
from gateway.admin.http.auth import require_read
from gateway.core.accounts.roles import refused_write

ITEMS_SHOWN_MAX = 500
# Where an account is shown, by its kind.
_PAGES = {
    "tenant": "tenants", "credits": "organizations", "spend": "organizations",
    "organization": "organizations", "budget": "budgets", "invoice": "invoices",
}  # fmt: skip


async def show(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /reconciliation`."""
    report, actor = reconciliation.REPORT, desk.ports.actor
    require_read(actor, report)
    may_run = refused_write(actor, report.name, report.access, reconciliation.RUN) is None
    last = await reconciliation.last(desk.ports)
    items: Any = (last or {}).get("items", [])
    again = Form("/reconciliation", "Run now", "Run now", note="Compares every account.")
    repair = Form(
        "/reconciliation/repair", "Run and repair", "Run and repair", is_dangerous=True,
        note="Makes each drift good by an appended adjust or correction.",
    )  # fmt: skip
    return desk.answer(
        request,
        signed,
        "reconciliation.html",
        last=last,
        items=[{**item, "href": _address(item["account"])} for item in items[:ITEMS_SHOWN_MAX]],
        more=max(0, len(items) - ITEMS_SHOWN_MAX),
        forms=[again, repair] if may_run else [],
    )


async def run(
    desk: Desk, request: web.Request, signed: Signed, _posted: Posted, *, repair: bool
) -> web.Response:
    """`POST /reconciliation` and `/reconciliation/repair`."""
    await reconciliation.run_once(desk.ports, request, None, repair=repair)
    return see("/reconciliation?done=reconciled")


def _address(account: str) -> str:
    kind, _, number = account.partition(":")
    page = _PAGES.get(kind)
    return f"/{page}/{number}" if page and number.isdigit() else ""
