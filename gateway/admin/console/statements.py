"""Reports of a moment as pages: what organizations have to pay, what is unbilled, and what both come to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from aiohttp import web

from gateway.admin.api.finance import asked_of, checked
from gateway.admin.console.accounts import preview
from gateway.admin.console.desk import Desk
from gateway.admin.console.sessions import Signed
from gateway.admin.http.auth import require_read
from gateway.admin.http.listing import read_once
from gateway.admin.resources.finance import ASKED
from gateway.admin.resources.reports import REPORTS

ROWS_SHOWN_MAX = 500


@dataclass(frozen=True, slots=True)
class Statement:
    """A report and how its page shows it: `amounts` by their titles, the last one orders the rows.

    `always` are amounts that have a tile of zero too. `previews` are lists of the organization, where one is
    asked for.
    """

    name: str
    title: str
    lead: str
    empty: str
    amounts: Mapping[str, str]
    always: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    previews: tuple[str, ...] = ()


STATEMENTS = (
    Statement(
        "receivables", "Receivables",
        "What is left to pay of final invoices, by how long it is due, and what is to be paid back",
        "Nobody has anything to pay.",
        {
            "open": "Not due", "overdue_1_30": "1–30 days", "overdue_31_60": "31–60 days",
            "overdue_61_90": "61–90 days", "overdue_over_90": "> 90 days", "to_pay_back": "To pay back",
            "uncollectible": "Given up", "total": "Total",
        },
        ("open", "total"), {"invoices": "Invoices"},
    ),
    Statement(
        "unbilled", "Unbilled", "What was charged and no final invoice had, before tax",
        "All that was charged is billed.", {"amount": "Amount"}, ("amount",),
        {"month": "Month of supply", "kind": "Kind", "charges": "Charges"},
    ),
    Statement(
        "balances", "Balances", "What organizations owe altogether: documents, payments, credit and unbilled",
        "Nobody owes anything.",
        {
            "invoiced": "Invoiced", "credited": "Credited", "paid": "Paid", "applied": "Applied",
            "refunded": "Paid back", "due": "Due", "open_credit": "Open credit", "unbilled": "Unbilled",
            "balance": "Balance",
        },
        ("due", "open_credit", "unbilled", "balance"),
        previews=("invoices", "payments", "note-applications"),
    ),
)  # fmt: skip


def mount_statements(app: web.Application, desk: Desk) -> None:
    """Serve each report's page."""
    for statement in STATEMENTS:
        app.router.add_get(f"/{statement.name}", desk.reading(partial(show, statement=statement)))


async def show(desk: Desk, request: web.Request, signed: Signed, *, statement: Statement) -> web.Response:
    """`GET /balances?at=2026-05-31`: by organization and currency, those that owe most first."""
    require_read(desk.ports.actor, REPORTS[f"reports/{statement.name}"])
    sent = {name: text for name, text in read_once(request.query).items() if text}
    asked = asked_of(desk.ports, statement.name, checked(ASKED[statement.name], sent))
    rows = await desk.ports.store.report(statement.name, asked, 0, ROWS_SHOWN_MAX + 1)
    last = list(statement.amounts)[-1]
    shown = sorted(rows[:ROWS_SHOWN_MAX], key=lambda row: (row["currency"], -_amount(row[last])))
    at, owner = (asked.until - timedelta(days=1)).date(), asked.organization_id
    names = () if owner is None else statement.previews
    lists = await asyncio.gather(*(preview(desk, name, organization_id=owner) for name in names if owner))
    return desk.answer(
        request, signed, "statement.html",
        statement=statement, at=at.isoformat(), is_today=at == datetime.now(UTC).date(), rows=shown,
        organization_id=owner, totals=_totals(shown, statement), is_cut=len(rows) > ROWS_SHOWN_MAX,
        previews=lists,
    )  # fmt: skip


def _totals(rows: Any, statement: Statement) -> list[dict[str, Any]]:
    """What rows come to, by currency."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        sums = found.setdefault(
            row["currency"], {"currency": row["currency"], **dict.fromkeys(statement.amounts, Decimal(0))}
        )
        for name in statement.amounts:
            sums[name] += row[name]
    return list(found.values())


def _amount(value: object) -> Decimal:
    assert isinstance(value, Decimal)
    return value
