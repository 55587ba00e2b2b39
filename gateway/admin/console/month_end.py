"""Makes the invoices of a month for all organizations at once, and shows the result for each.

For each organization, a draft is created or computed again, and finalized unless drafts were requested. A
repeated request continues from where it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from aiohttp import web

from gateway.admin.console.forms import PageForm
from gateway.admin.console.home import ConsoleShell, Posted, SignedInPerson, query
from gateway.admin.http.requests import id_of, may_write
from gateway.admin.operations import WriteRequest
from gateway.admin.resources.form_fields import FormField
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import CREATE, Row
from gateway.errors import Conflict, NotFound, Unprocessable

INVOICES = RESOURCES["invoices"]
# The number of months to choose from, this one first.
MONTHS_OFFERED = 13
# Maximum of seconds of one run; the page shows that organizations are left.
RUN_S_MAX = 15.0
ORGANIZATIONS_A_PAGE = 100
INVOICES_OF_ONE_MAX = 1_000
_ACTIONS = {action.name: action for action in INVOICES.actions}
_FORM = PageForm(
    "/invoices/month", "Invoice a month", "Invoice all of it",
    [
        FormField("month", "choice", required=True, hint="Whole months, UTC. The last one is over."),
        FormField("draft", "flag", hint="Yes leaves drafts, to be looked at first."),
    ],
    confirmed="Each gets its number, and nothing changes it any more. Drafts stay drafts.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InvoicedOrganization:
    """The result for an organization's month: its invoice, or the reason why there is none."""

    organization_id: int
    name: str
    invoice: Row | None
    reason: str = ""


async def show_month(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /invoices/month`: the form for invoicing a month."""
    if not may_write(signed.actor, INVOICES, CREATE):
        raise NotFound
    months = months_until(datetime.now(UTC).date())
    return _page(desk, request, signed, {"month": request.query.get("month", months[1]), "draft": "false"})


async def invoice_month(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted
) -> web.Response:
    """`POST /invoices/month`: invoice organizations beyond the id `after`, until the time is over."""
    typed = {name: str(posted.get(name, "")) for name in ("month", "draft", "after")}
    if typed["month"] not in months_until(datetime.now(UTC).date()):
        wrong = {"month": "must be one of these months"}
        return _page(desk, request, signed, typed, status=422, errors=wrong)
    run = _MonthRun(
        desk,
        desk.make_write(request, signed, posted),
        period_of_month(typed["month"]),
        typed["draft"] == "true",
    )
    loop, done = asyncio.get_running_loop(), list[InvoicedOrganization]()
    until, after = loop.time() + RUN_S_MAX, id_of(typed["after"]) or 0
    while organizations := await run.organizations(after):
        for row in organizations:
            if loop.time() > until:
                return _page(desk, request, signed, typed, done=done, after=after)
            done.append(await run.invoice(row))
            after = done[-1].organization_id
    return _page(desk, request, signed, typed, done=done)


def months_until(today: date) -> list[str]:
    """Return the months to choose from as "2026-01", the current month first."""
    months = [today.replace(day=1)]
    while len(months) < MONTHS_OFFERED:
        months.append((months[-1] - timedelta(days=1)).replace(day=1))
    return [f"{month:%Y-%m}" for month in months]


def period_of_month(month: str) -> tuple[str, str]:
    """Return the first day of a month such as "2026-01", and the first day of the next month."""
    first = date.fromisoformat(f"{month}-01")
    return str(first), str((first + timedelta(days=31)).replace(day=1))


@dataclass(frozen=True, slots=True)
class _MonthRun:
    """Invoices organizations for one period; with `keeps_drafts` the invoices stay drafts."""

    desk: ConsoleShell
    asked: WriteRequest
    period: tuple[str, str]
    keeps_drafts: bool

    async def organizations(self, after: int) -> Sequence[Row]:
        wanted = replace(query(ORGANIZATIONS_A_PAGE), after=(after,))
        return (await self.desk.ports.store.page("organizations", wanted)).rows

    async def invoice(self, organization: Row) -> InvoicedOrganization:
        """Make the invoice of an organization; if it is refused, the result has the reason instead."""
        owner, name = int(str(organization["id"])), str(organization["name"])
        try:
            made = await self._make(owner)
        except (Unprocessable, Conflict) as error:
            message_ = "; ".join(message for _, message in getattr(error, "errors", ())) or error.message
            return InvoicedOrganization(owner, name, None, message_)
        return InvoicedOrganization(owner, name, made, "" if made else "nothing to bill")

    async def _make(self, owner: int) -> Row | None:
        """Return the organization's invoice, existing or new; None if there is nothing to bill.

        A draft without lines is deleted and takes no number.
        """
        invoices, (start, end) = self.desk.operations["invoices"], self.period
        invoice = await self._existing_invoice(owner)
        if invoice is None:
            sent = {"organization_id": owner, "period_start": start, "period_end": end}
            invoice = (await invoices.create(self.asked, sent)).content
        elif invoice["status"] != "draft":
            return invoice
        else:
            invoice = await self._act("recompute", invoice)
        if not invoice["lines"]:
            await invoices.delete(self.asked, int(str(invoice["id"])))
            return None
        return invoice if self.keeps_drafts else await self._act("finalize", invoice)

    async def _existing_invoice(self, owner: int) -> Row | None:
        """Return the organization's existing invoice of the period; None if there is none."""
        rows, _ = await self.desk.operations["invoices"].list(
            query(INVOICES_OF_ONE_MAX, newest_first=True, organization_id=owner, kind="invoice")
        )
        here = (
            row
            for row in rows
            if row["status"] != "void" and (row["period_start"], row["period_end"]) == self.period
        )
        return next(here, None)

    async def _act(self, name: str, row: Row) -> Row:
        done = await self.desk.operations["invoices"].act(_ACTIONS[name], self.asked, int(str(row["id"])), {})
        return done.content


def _page(
    desk: ConsoleShell,
    request: web.Request,
    signed: SignedInPerson,
    typed: dict[str, str],
    *,
    status: int = 200,
    errors: dict[str, str] | None = None,
    done: Sequence[InvoicedOrganization] | None = None,
    after: int = 0,
) -> web.Response:
    months = tuple(months_until(datetime.now(UTC).date()))
    fields = [replace(field, choices=months) if field.name == "month" else field for field in _FORM.fields]
    form = replace(_FORM, fields=fields, values=typed, errors=errors or {})
    going_on = None
    if after:
        going_on = PageForm(
            _FORM.action, "Go on", "Go on with the others", hidden={**typed, "after": str(after)}
        )
    return desk.answer(
        request, signed, "month_end.html", status, form=form, invoiced=done, going_on=going_on, typed=typed
    )
