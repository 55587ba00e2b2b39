"""Documents of invoices: PDF, lines as CSV, and every use they bill as CSV."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.http.auth import identify
from gateway.admin.http.guard import DEADLINE
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import RESOURCES
from gateway.admin.resources.values import show_instant
from gateway.core.accounts.administration import Row
from gateway.core.spreadsheet import csv
from gateway.errors import Overloaded

LINE_COLUMNS = (
    "position", "kind", "description", "service_id", "tenant_id", "quantity", "unit_price", "amount",
    "currency",
)  # fmt: skip
USAGE_COLUMNS = (
    "kind", "timestamp", "tenant_id", "service", "quantity", "seq", "request_id", "user", "content_id",
    "project_id", "feature_version", "model",
)  # fmt: skip
# Each has a connection to PostgreSQL for as long as its reader takes, the console's as many again.
EXPORTS_MAX = 4

Identify = Callable[[AdminPorts, web.Request], Awaitable[object]]


def mount_invoices(
    app: web.Application, ports: AdminPorts, root: str, identified: Identify = identify
) -> None:
    """Serve the documents below an invoice's address; before the resources, whose paths are wider.

    `identified` refuses who may not read.
    """
    resource = RESOURCES["invoices"]
    exports = asyncio.Semaphore(EXPORTS_MAX)

    async def read(request: web.Request) -> Row:
        await identified(ports, request)
        return resource.render(await ports.store.get("invoices", row_id(request)))

    async def pdf(request: web.Request) -> web.Response:
        invoice = await read(request)
        made = await asyncio.to_thread(ports.invoice_renderer.pdf, invoice)
        return web.Response(body=made, headers=_named(invoice, "pdf", "application/pdf"))

    async def lines(request: web.Request) -> web.Response:
        invoice = await read(request)
        rows = ({**line, "currency": invoice["currency"]} for line in invoice["lines"])  # type: ignore[attr-defined]  # a list of lines
        return web.Response(
            body=csv(LINE_COLUMNS, rows, head=True),
            headers=_named(invoice, "csv", "text/csv; charset=utf-8"),
        )

    async def usage(request: web.Request) -> web.StreamResponse:
        invoice = await read(request)
        if exports.locked():
            raise Overloaded(f"{EXPORTS_MAX} of these are being read already: try again in a while.")
        async with exports:
            return await write_usage(request, invoice)

    async def write_usage(request: web.Request, invoice: Mapping[str, object]) -> web.StreamResponse:
        response = web.StreamResponse(headers=_named(invoice, "usage.csv", "text/csv; charset=utf-8"))
        await response.prepare(request)
        whole = False
        try:
            await response.write(csv(USAGE_COLUMNS, (), head=True))
            async for batch in ports.store.usage(row_id(request)):
                await response.write(csv(USAGE_COLUMNS, map(_use, batch)))
                request[DEADLINE].reschedule(asyncio.get_running_loop().time() + ports.request_timeout_s)
            await response.write_eof()
            whole = True
        finally:
            # A file that breaks off must not look whole.
            if not whole and request.transport is not None:
                request.transport.abort()
        return response

    one = f"{root}/invoices/{{id:[0-9]+}}"
    app.router.add_get(f"{one}.pdf", pdf)
    app.router.add_get(f"{one}.csv", lines)
    app.router.add_get(f"{one}/usage.csv", usage)


def _use(row: Row) -> dict[str, object]:
    return {**row, "timestamp": show_instant(row["at"])}  # type: ignore[arg-type]  # a time


def _named(invoice: Mapping[str, object], suffix: str, kind: str) -> dict[str, str]:
    name = f"{invoice['kind']}-{invoice['number'] or invoice['id']}.{suffix}".replace("_", "-")
    return {"Content-Type": kind, "Content-Disposition": f'attachment; filename="{name}"'}
