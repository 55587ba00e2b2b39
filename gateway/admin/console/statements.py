"""Finance reports as pages: amounts due, revenue, taxes and the journal, by organization and currency."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin.api.finance import LEDGER, checked, first_entry, period_of, shown_as
from gateway.admin.console.formatting import label_of
from gateway.admin.console.home import ConsoleShell, SignedInPerson
from gateway.admin.console.lists import FilterControl, find_names, unknown
from gateway.admin.console.records import preview
from gateway.admin.http.requests import read_once, require_read
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.form_fields import REFERS
from gateway.admin.resources.reports import ASKED, REPORTS
from gateway.core.accounts.administration import Row
from gateway.core.billing.finance import ReportPeriod
from gateway.errors import Unprocessable

ROWS_SHOWN_MAX = 500
_ONE_DAY = timedelta(days=1)
# Columns with counts, and the lists of the counted rows.
COUNTS = {"invoices": "/invoices", "charges": "/charges", "documents": ""}


@dataclass(frozen=True, slots=True)
class Statement:
    """A finance report and its page: `facts` and `amounts` are titled columns, ordered by the last amount.

    `always` are amounts whose total is shown even if it is zero. `previews` are lists of the organization,
    shown if one is selected.
    """

    name: str
    title: str
    lead: str
    empty: str
    amounts: Mapping[str, str]
    always: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    previews: tuple[str, ...] = ()

    @property
    def is_of_day(self) -> bool:
        """Whether the report is for the end of a day, not for months."""
        return "at" in ASKED[self.name].model_fields


_SUPPLY = {"month": "Month of supply", "kind": "Kind"}
STATEMENTS = (
    Statement(
        "balances", "Balances", "The whole debt of organizations: documents, payments, credit and unbilled",
        "Nobody owes anything.",
        {
            "invoiced": "Invoiced", "credited": "Credited", "paid": "Paid", "applied": "Applied",
            "refunded": "Refunded", "due": "Due", "open_credit": "Open credit", "unbilled": "Unbilled",
            "balance": "Balance",
        },
        ("due", "open_credit", "unbilled", "balance"),
        previews=("invoices", "payments", "note-applications"),
    ),
    Statement(
        "unbilled", "Unbilled", "Charges that no final invoice had, before tax",
        "All that was charged is billed.", {"amount": "Amount"}, ("amount",),
        {**_SUPPLY, "charges": "Charges"},
    ),
    Statement(
        "receivables", "Receivables",
        "The rest to pay of final invoices, by how long it is due, and the rest to refund",
        "Nobody has anything to pay.",
        {
            "open": "Not due", "overdue_1_30": "1–30 days", "overdue_31_60": "31–60 days",
            "overdue_61_90": "61–90 days", "overdue_over_90": "> 90 days", "to_pay_back": "To refund",
            "uncollectible": "Uncollectible", "total": "Total",
        },
        ("open", "total"), {"invoices": "Invoices"},
    ),
    Statement(
        "revenue", "Revenue", "Supplies before tax, by their month",
        "Nothing was supplied.", {"amount": "Revenue"}, ("amount",), _SUPPLY,
    ),
    Statement(
        "deferred-revenue", "Deferred revenue", "Charges billed ahead of their supply, and credits not used",
        "Nothing is billed ahead.", {"amount": "Deferred"}, ("amount",), _SUPPLY,
    ),
    Statement(
        "taxes", "Taxes", "Net amounts and taxes of invoices and credit notes, by rate",
        "No document has a tax.", {"net": "Net", "tax": "Tax"}, ("net", "tax"),
        {"month": "Month", "rate": "Rate", "documents": "Documents"},
    ),
    Statement(
        "ledger", "Ledger entries", "Double entries of charges, invoices, payments and credit notes",
        "Nothing was entered.", {"debit": "Debit", "credit": "Credit"}, ("debit", "credit"),
        {"date": "Date", "account": "Account", "source": "Of", "number": "Invoice",
         "description": "Description"},
    ),
)  # fmt: skip


async def show_statement(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, *, statement: Statement
) -> web.Response:
    """`GET /balances?at=2026-05-31`, `/revenue?from=2026-04`: by organization and currency, with totals."""
    ports, name = desk.ports, statement.name
    require_read(ports.actor, REPORTS[f"reports/{name}"])
    sent = {field: text.strip() for field, text in read_once(request.query).items() if text.strip()}
    ids, errors = await find_names(desk, sent, REFERS)
    errors |= unknown(sent, {field.alias or key for key, field in ASKED[name].model_fields.items()})
    rows: Sequence[Row] = ()
    asked = None
    if not errors:
        try:
            fields = checked(ASKED[name], sent | ids)
            asked = period_of(ports, name, fields)
            rows = await _read(ports, statement, asked, fields)
        except Unprocessable as wrong:
            errors = dict(wrong.errors)
    owner = asked.organization_id if asked is not None else None
    shown = rows[:ROWS_SHOWN_MAX]
    names = () if owner is None else statement.previews
    previews = await asyncio.gather(*(preview(desk, name, organization_id=owner) for name in names if owner))
    waiting = await ports.store.waiting(owner) if owner is not None and name == "unbilled" else ()
    return desk.answer(
        request, signed, "statement.html", 422 if errors else 200,
        statement=statement, span=_span(statement, asked), rows=shown, organization_id=owner,
        totals=_totals(shown, statement), is_cut=len(rows) > ROWS_SHOWN_MAX, previews=previews,
        controls=_controls(statement, signed, sent, errors), presets=_presets(statement, sent, ids),
        errors={label_of(each): text for each, text in errors.items()}, counts=COUNTS,
        file=f"/reports/{name}.csv?{urlencode(sent | ids)}", waiting=waiting,
    )  # fmt: skip


async def _read(
    ports: AdminPorts, statement: Statement, asked: ReportPeriod, fields: Mapping[str, object]
) -> Sequence[Row]:
    """Return up to `ROWS_SHOWN_MAX` + 1 rows of a statement's report; at a day's end, by currency and amount.

    `fields` are the model's fields, for decoding values.
    """
    name, most, store = statement.name, ROWS_SHOWN_MAX + 1, ports.store
    if name == LEDGER:
        found = await store.ledger(asked, first_entry(asked), most)
    else:
        found = await store.report(name, asked, 0, most)
    rows = [
        {**row, **{amount: _decimal(row[amount]) for amount in statement.amounts}}
        for row in map(shown_as(name, fields), found)
    ]
    if not statement.is_of_day:
        return rows
    last = list(statement.amounts)[-1]
    return sorted(rows, key=lambda row: (row["currency"], -(_decimal(row[last]) or 0)))


def _span(statement: Statement, asked: ReportPeriod | None) -> str:
    """Return the period of a statement in words."""
    if asked is None:
        return ""
    last = (asked.until - _ONE_DAY).date()
    if asked.since is None:
        return f"at the end of {'today' if last == datetime.now(UTC).date() else last}"
    first, month = f"{asked.since:%Y-%m}", f"{last:%Y-%m}"
    return f"of {first}" if first == month else f"of {first} to {month}"


def _controls(
    statement: Statement, signed: SignedInPerson, sent: Mapping[str, str], errors: Mapping[str, str]
) -> list[FilterControl]:
    """Return the filters of a page; people of one organization get no filter by organization."""
    kinds = {"organization_id": "named", "currency": "text"}
    kinds |= {"at": "day"} if statement.is_of_day else {"from": "month", "to": "month"}
    labels = {"at": "At the end of", "from": "From month", "to": "To month"}
    choices = {"by": [("document", "document"), ("supply", "supply")]} if statement.name == "taxes" else {}
    kinds |= {
        **dict.fromkeys(choices, "choice"),
        **({"accounts": "text"} if statement.name == LEDGER else {}),
    }
    return [
        FilterControl(
            name, labels.get(name) or label_of(name), kind, sent.get(name, ""), choices.get(name, ()),
            REFERS.get(name, ""), errors.get(name, ""),
        )
        for name, kind in kinds.items()
        if name != "organization_id" or signed.actor.organization_id is None
    ]  # fmt: skip


def _presets(
    statement: Statement, sent: Mapping[str, str], ids: Mapping[str, str]
) -> list[tuple[str, str, bool]]:
    """Return usual periods: their titles and addresses, and whether each is selected."""
    today = datetime.now(UTC).date()
    before = today.replace(day=1) - _ONE_DAY
    this, last = f"{today:%Y-%m}", f"{before:%Y-%m}"
    times: dict[str, dict[str, str]] = {
        "This month": {"from": this, "to": this},
        "Last month": {"from": last, "to": last},
        "This year": {"from": f"{date(today.year, 1, 1):%Y-%m}", "to": this},
    }
    if statement.is_of_day:
        times = {"Today": {"at": str(today)}, "End of last month": {"at": str(before)}}
    usual = next(iter(times.values()))
    others = {
        name: text for name, text in (dict(sent) | dict(ids)).items() if name not in {"at", "from", "to"}
    }
    here = {name: sent.get(name, text) for name, text in usual.items()}
    return [
        (title, f"/{statement.name}?{urlencode(others | time)}", time == here)
        for title, time in times.items()
    ]


def _totals(rows: Sequence[Row], statement: Statement) -> list[dict[str, Any]]:
    totals: dict[object, dict[str, Any]] = {}
    for row in rows:
        sums = totals.setdefault(
            row["currency"], {"currency": row["currency"], **dict.fromkeys(statement.amounts, Decimal(0))}
        )
        for name in statement.amounts:
            sums[name] += _decimal(row[name]) or 0
    return list(totals.values())


def _decimal(value: object) -> Decimal | None:
    return None if value is None else Decimal(str(value))
