"""An invoice's page: its lines, what of it was paid, and what became of it, with what gives it back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from aiohttp import web

from gateway.admin.console import shown
from gateway.admin.console.accounts import preview
from gateway.admin.console.desk import Desk, query
from gateway.admin.resources.invoices import InvoiceLine
from gateway.core.accounts.administration import Row
from gateway.core.billing.handover import DONE, KINDS

LINES_A_PAGE = 100
# Notes, and payments, that the history of an invoice tells of.
NOTES_TOLD_MAX = 50
PAYMENTS_TOLD_MAX = 200
# One of each kind.
HANDOVERS_TOLD_MAX = len(KINDS)
_POSITION = re.compile("[0-9]{1,9}", re.ASCII)


class Happened(NamedTuple):
    """One step of an invoice's life: when, what, the state it brought, and the page that tells more."""

    at: datetime
    what: str
    state: str = ""
    href: str = ""


async def about_invoice(desk: Desk, request: web.Request, row: Row) -> Mapping[str, Any]:
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


async def _history(desk: Desk, row: Row) -> list[Happened]:
    """What happened to it, the first thing first; payments and notes lead to their pages."""
    invoice_id = int(str(row["id"]))
    found = list(_of_itself(row))
    if corrects := row["corrects_id"]:
        corrected = await desk.operations["invoices"].show(int(str(corrects)))
        found[0] = found[0]._replace(
            what=f"{found[0].what}, of invoice {corrected['number']}", href=f"/invoices/{corrects}"
        )
    notes, _ = await desk.operations["invoices"].list(query(NOTES_TOLD_MAX, corrects_id=invoice_id))
    for note in notes:
        amount = shown.money(note["total_amount"], str(note["currency"]))
        what = f"Credit note {note['number'] or '(draft)'}: {amount}"
        at = note["finalized_at"] or note["created_at"]
        found.append(Happened(_moment(at), what, str(note["status"]), f"/invoices/{note['id']}"))
    if row["status"] == "finalized":
        paid, _ = await desk.operations["payments"].list(query(PAYMENTS_TOLD_MAX, invoice_id=invoice_id))
        for payment in paid:
            amount = shown.money(payment["amount"], str(payment["currency"]))
            what = "Paid" if Decimal(str(payment["amount"])) > 0 else "Paid back"
            said = f"{what}: {amount}, {payment['reference']}"
            found.append(Happened(_moment(payment["created_at"]), said, "", f"/payments/{payment['id']}"))
    of: dict[str, Any] = {"note_id" if row["kind"] == "credit_note" else "invoice_id": invoice_id}
    applied, _ = await desk.operations["note-applications"].list(query(PAYMENTS_TOLD_MAX, **of))
    for each in applied:
        amount = shown.money(each["amount"], str(each["currency"]))
        said, href = f"Credit applied: {amount}", f"/note-applications/{each['id']}"
        found.append(Happened(_moment(each["created_at"]), said, str(each["reason"]), href))
    handed, _ = await desk.operations["handovers"].list(query(HANDOVERS_TOLD_MAX, invoice_id=invoice_id))
    for each in handed:
        told = f"Stripe has {each['remote']}" if each["state"] == DONE else "For Stripe"
        what = f"{told}: {str(each['kind']).replace('_', ' ')}"
        at = _moment(each["done_at"] or each["created_at"])
        found.append(Happened(at, what, str(each["state"]), f"/handovers/{each['id']}"))
    return sorted(found, key=lambda each: each.at)


def _of_itself(row: Row) -> Iterator[Happened]:
    yield Happened(_moment(row["created_at"]), "Drafted", "draft")
    if row["finalized_at"]:
        due = f", due on {row['due_date']}" if row["due_date"] else ""
        yield Happened(_moment(row["finalized_at"]), f"Final as {row['number']}{due}", "finalized")
    if row["uncollectible_at"]:
        yield Happened(_moment(row["uncollectible_at"]), "Given up", "uncollectible")
    if row["voided_at"]:
        yield Happened(_moment(row["voided_at"]), "Made void", "void")


def _moment(value: object) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
