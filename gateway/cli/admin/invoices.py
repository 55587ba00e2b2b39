"""`tollkeeper invoice create, show, run`: a month's draft, its documents, and all of a month."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, report, rows, say, steps

COLUMNS = (
    "id", "number", "kind", "status", "payment_status", "due_date", "organization_id", "customer",
    "period_start", "period_end", "currency", "total_amount", "amount_due",
)  # fmt: skip
LINE_COLUMNS = ("position", "kind", "description", "quantity", "unit_price", "amount")
ORGANIZATIONS_MAX = 1_000_000
INVOICES_MAX = 1_000

Invoice = Annotated[int, typer.Argument(metavar="INVOICE", help="Its id.")]
Month = Annotated[str | None, typer.Option("--month", help="Such as 2026-04; by default the last one.")]


def create(
    organization: Annotated[str, typer.Argument(metavar="ORG", help="Id or name.")],
    *,
    month: Month = None,
    start: Annotated[str | None, typer.Option("--from", help="The first day, instead of a month.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="The day after the last.")] = None,
    source: Annotated[
        str | None, typer.Option(help="One-off: what this alone owes, such as credit_addition.")
    ] = None,
    source_id: Annotated[int | None, typer.Option(help="Of one of them only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a draft for a month, for days of your own, or of one source: then it needs no period."""
    with admin() as api:
        if source is not None:
            if start or month:
                raise CommandFailed("A one-off invoice begins with what is owed: give --to alone, or none.")
            sent = {"source": source, "source_id": source_id, "period_end": end}
            owner = {"organization_id": api.id_of("organizations", organization)}
            made = api.post("invoices", owner | {name: value for name, value in sent.items() if value})
            report(made, "Lines", LINE_COLUMNS, inner="lines", as_json=as_json)
            return
        if source_id or (start is None) != (end is None) or (start and month):
            raise CommandFailed("Give --month, or --from and --to together, or --source.")
        period = (start, end) if start and end else _month(month)
        made = _create(api, api.id_of("organizations", organization), period)
        report(made, "Lines", LINE_COLUMNS, inner="lines", as_json=as_json)


def show(
    invoice: Invoice,
    *,
    pdf: Annotated[Path | None, typer.Option(help="Write the PDF here.")] = None,
    xml: Annotated[Path | None, typer.Option(help="Write the electronic invoice here: Factur-X.")] = None,
    ubl: Annotated[Path | None, typer.Option(help="Write it as UBL here.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the lines here.")] = None,
    usage: Annotated[Path | None, typer.Option(help="Write every use that it bills here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show an invoice, or write its documents."""
    with admin() as api:
        report(api.get(f"invoices/{invoice}"), "Lines", LINE_COLUMNS, inner="lines", as_json=as_json)
        asked = (
            (pdf, ".pdf"), (xml, ".xml"), (ubl, ".xml?format=ubl"), (csv, ".csv"), (usage, "/usage.csv"),
        )  # fmt: skip
        for path, suffix in asked:
            if path is not None:
                path.write_bytes(api.download(f"invoices/{invoice}{suffix}"))
                say(f"Written: {path}")


def run(
    *,
    month: Month = None,
    draft: Annotated[bool, typer.Option("--draft", help="Leave drafts, to be looked at first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Invoice a month for all organizations; started again, it goes on where it was."""
    with admin() as api:
        period = _month(month)
        organizations = api.items("organizations", ORGANIZATIONS_MAX)
        done: list[Json] = []
        failed = 0
        with steps(len(organizations), f"Invoices from {period[0]}") as step:
            for organization in organizations:
                name = organization["name"]
                try:
                    invoice = _one_of_run(api, int(organization["id"]), period, draft=draft)
                except CommandFailed as refusal:
                    failed += 1
                    step(f"{name}: {refusal.message}")
                    continue
                if invoice is None:
                    step(f"{name}: nothing to bill")
                    continue
                done.append(invoice)
                named = invoice["number"] or f"draft {invoice['id']}"
                step(f"{name}: {named}, {invoice['currency']} {invoice['total_amount']}")
        rows(done, COLUMNS, as_json=as_json, title=f"Invoices from {period[0]} to {period[1]}")
        if failed:
            raise CommandFailed(f"{failed} of {len(organizations)} organizations are left; run it again.")


def _one_of_run(api: AdminClient, owner: int, period: tuple[str, str], *, draft: bool) -> Json | None:
    """The organization's invoice of the period: found as an earlier run left it, else made.

    None where there is nothing to bill: such a draft is not kept and takes no number.
    """
    known = [
        invoice
        for invoice in api.items("invoices", INVOICES_MAX, organization_id=owner)
        if invoice["corrects_id"] is None
        and (invoice["period_start"], invoice["period_end"]) == period
        and invoice["status"] != "void"
    ]
    invoice = known[0] if known else _create(api, owner, period)
    if known and invoice["status"] == "draft":
        invoice = api.post(f"invoices/{invoice['id']}/recompute")
    if invoice["status"] == "draft" and not invoice["lines"]:
        api.delete(f"invoices/{invoice['id']}")
        return None
    if draft or invoice["status"] == "finalized":
        return invoice
    return api.post(f"invoices/{invoice['id']}/finalize")


def _create(api: AdminClient, owner: int, period: tuple[str, str]) -> Json:
    start, end = period
    return api.post("invoices", {"organization_id": owner, "period_start": start, "period_end": end})


def _month(text: str | None) -> tuple[str, str]:
    """The first day of a month and of the next one."""
    today = datetime.now(UTC).date()
    year, month = (today.year, today.month - 1) if today.month > 1 else (today.year - 1, 12)
    if text is not None:
        if re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text) is None:
            raise CommandFailed(f"--month must be such as 2026-04, not {text!r}.")
        year, month = int(text[:4]), int(text[5:])
    following = date(year + month // 12, month % 12 + 1, 1)
    return date(year, month, 1).isoformat(), following.isoformat()
