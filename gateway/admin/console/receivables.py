"""Receivables: what organizations have to pay at the end of a day, by how long it is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from aiohttp import web

from gateway.admin.api.finance import asked_of, checked
from gateway.admin.console.desk import Desk
from gateway.admin.console.sessions import Signed
from gateway.admin.http.auth import require_read
from gateway.admin.http.listing import read_once
from gateway.admin.resources.finance import ASKED
from gateway.admin.resources.reports import REPORTS

NAME = "receivables"
REPORT = REPORTS[f"reports/{NAME}"]
ROWS_SHOWN_MAX = 500
AGES = {
    "open": "Not due",
    "overdue_1_30": "1–30 days",
    "overdue_31_60": "31–60 days",
    "overdue_61_90": "61–90 days",
    "overdue_over_90": "> 90 days",
    "to_pay_back": "To pay back",
    "uncollectible": "Given up",
    "total": "Total",
}


async def show(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /receivables?at=2026-05-31`: by organization and currency, those that owe most first."""
    require_read(desk.ports.actor, REPORT)
    sent = {name: text for name, text in read_once(request.query).items() if text}
    asked = asked_of(desk.ports, NAME, checked(ASKED[NAME], sent))
    rows = await desk.ports.store.report(NAME, asked, 0, ROWS_SHOWN_MAX + 1)
    shown = sorted(rows[:ROWS_SHOWN_MAX], key=lambda row: (row["currency"], -_amount(row["total"])))
    at = (asked.until - timedelta(days=1)).date()
    return desk.answer(
        request, signed, "receivables.html",
        at=at.isoformat(), is_today=at == datetime.now(UTC).date(), ages=AGES, rows=shown,
        totals=_totals(shown), is_cut=len(rows) > ROWS_SHOWN_MAX,
    )  # fmt: skip


def _totals(rows: Any) -> list[dict[str, Any]]:
    """What rows come to, by currency."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        sums = found.setdefault(
            row["currency"], {"currency": row["currency"], **dict.fromkeys(AGES, Decimal(0))}
        )
        for age in AGES:
            sums[age] += row[age]
    return list(found.values())


def _amount(value: object) -> Decimal:
    assert isinstance(value, Decimal)
    return value
