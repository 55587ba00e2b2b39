"""The page of an invoice: its lines, payments, charges left for a later invoice, and history."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from aiohttp import web

from gateway.admin.console import formatting
from gateway.admin.console.home import ConsoleShell, query
from gateway.admin.console.records import preview
from gateway.admin.console.timeline import TimelineEntry, moment
from gateway.admin.resources.invoices import InvoiceLine
from gateway.core.accounts.administration import Row
from gateway.feature import features

LINES_A_PAGE = 100
# Maxima of notes and of payments in the history of an invoice.
NOTES_TOLD_MAX = 50
PAYMENTS_TOLD_MAX = 200
_POSITION = re.compile("[0-9]{1,9}", re.ASCII)


async def about_invoice(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """Return a page of an invoice's lines; on the first page also payments, waiting charges and history."""
    sent = request.query.get("after", "")
    after = int(sent) if _POSITION.fullmatch(sent) else 0
    invoice_id = int(str(row["id"]))
    lines = await desk.ports.figures.invoice_lines(invoice_id, after, LINES_A_PAGE + 1)
    payments = None
    if row["status"] == "finalized" and after == 0:
        payments = await preview(desk, "payments", invoice_id=invoice_id)
    waiting: Sequence[Row] = ()
    if row["status"] == "draft" and row["kind"] == "invoice" and after == 0:
        until = date.fromisoformat(str(row["period_end"]))
        waiting = await desk.ports.store.waiting(int(str(row["organization_id"])), until)
    shown = [InvoiceLine.model_validate(line).model_dump(mode="json") for line in lines[:LINES_A_PAGE]]
    return {
        "shown": shown,
        "payments": payments,
        "waiting": waiting,
        "history": await _history(desk, row) if after == 0 else [],
        "is_first": after == 0,
        "next": f"{request.path}?after={shown[-1]['position']}" if len(lines) > LINES_A_PAGE else "",
        "line_names": await desk.names(
            {
                "services": {line["service_id"] for line in shown if line["service_id"]},
                "tenants": {line["tenant_id"] for line in shown if line["tenant_id"]},
            }
        ),
    }


async def _history(desk: ConsoleShell, row: Row) -> list[TimelineEntry]:
    """Return an invoice's history, oldest first, with links to payments and notes."""
    invoice_id = int(str(row["id"]))
    moments = list(_of_itself(row))
    if corrects := row["corrects_id"]:
        corrected = await desk.operations["invoices"].show(int(str(corrects)))
        moments[0] = moments[0]._replace(
            what=f"{moments[0].what}, of invoice {corrected['number']}", href=f"/invoices/{corrects}"
        )
    notes, _ = await desk.operations["invoices"].list(query(NOTES_TOLD_MAX, corrects_id=invoice_id))
    for note in notes:
        amount = formatting.money(note["total_amount"], str(note["currency"]))
        what = f"Credit note {note['number'] or '(draft)'}: {amount}"
        at = note["finalized_at"] or note["created_at"]
        moments.append(TimelineEntry(moment(at), what, str(note["status"]), f"/invoices/{note['id']}"))
    if row["status"] == "finalized":
        paid, _ = await desk.operations["payments"].list(query(PAYMENTS_TOLD_MAX, invoice_id=invoice_id))
        for payment in paid:
            amount = formatting.money(payment["amount"], str(payment["currency"]))
            what = "Paid" if Decimal(str(payment["amount"])) > 0 else "Refunded"
            sentence = f"{what}: {amount}, {payment['reference']}"
            moments.append(
                TimelineEntry(moment(payment["created_at"]), sentence, "", f"/payments/{payment['id']}")
            )
    of: dict[str, Any] = {"note_id" if row["kind"] == "credit_note" else "invoice_id": invoice_id}
    applied, _ = await desk.operations["note-applications"].list(query(PAYMENTS_TOLD_MAX, **of))
    for application in applied:
        amount = formatting.money(application["amount"], str(application["currency"]))
        sentence, href = f"Credit applied: {amount}", f"/note-applications/{application['id']}"
        moments.append(
            TimelineEntry(moment(application["created_at"]), sentence, str(application["reason"]), href)
        )
    for told in (told for feature in features() for told in feature.invoice_history()):
        moments += await told(desk, invoice_id)
    return sorted(moments, key=lambda each: each.at)


def _of_itself(row: Row) -> Iterator[TimelineEntry]:
    yield TimelineEntry(moment(row["created_at"]), "Drafted", "draft")
    if row["finalized_at"]:
        due = f", due on {row['due_date']}" if row["due_date"] else ""
        yield TimelineEntry(moment(row["finalized_at"]), f"Final as {row['number']}{due}", "finalized")
    if row["uncollectible_at"]:
        yield TimelineEntry(moment(row["uncollectible_at"]), "The rest is uncollectible", "uncollectible")
    if row["voided_at"]:
        yield TimelineEntry(moment(row["voided_at"]), "Made void", "void")
