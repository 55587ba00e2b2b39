"""Documents of invoices: PDF, lines as CSV, and every use they bill as CSV."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.http.auth import identify
from gateway.admin.http.files import CSV, Files, headers_of
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import RESOURCES
from gateway.admin.resources.values import show_instant
from gateway.core.accounts.administration import Row
from gateway.core.spreadsheet import csv

LINE_COLUMNS = (
    "position", "kind", "description", "service_id", "tenant_id", "quantity", "unit_price", "amount",
    "currency",
)  # fmt: skip
USAGE_COLUMNS = (
    "kind", "timestamp", "tenant_id", "service", "quantity", "seq", "request_id", "user", "content_id",
    "project_id", "feature_version", "model",
)  # fmt: skip

Identify = Callable[[AdminPorts, web.Request], Awaitable[object]]


def mount_invoices(
    app: web.Application, ports: AdminPorts, root: str, identified: Identify = identify
) -> None:
    """Serve the documents below an invoice's address; before the resources, whose paths are wider.

    `identified` refuses who may not read.
    """
    resource = RESOURCES["invoices"]
    files = Files(ports.request_timeout_s)

    async def read(request: web.Request) -> Row:
        await identified(ports, request)
        return resource.render(await ports.store.get("invoices", row_id(request)))

    async def pdf(request: web.Request) -> web.Response:
        invoice = await read(request)
        made = await asyncio.to_thread(ports.invoice_renderer.pdf, invoice)
        return web.Response(body=made, headers=headers_of(_name(invoice, "pdf"), "application/pdf"))

    async def lines(request: web.Request) -> web.Response:
        invoice = await read(request)
        rows = ({**line, "currency": invoice["currency"]} for line in invoice["lines"])  # type: ignore[attr-defined]  # a list of lines
        made = csv(LINE_COLUMNS, rows, head=True)
        return web.Response(body=made, headers=headers_of(_name(invoice, "csv"), CSV))

    async def usage(request: web.Request) -> web.StreamResponse:
        invoice = await read(request)
        return await files.answer(request, _name(invoice, "usage.csv"), CSV, uses(row_id(request)))

    async def uses(invoice_id: int) -> AsyncGenerator[bytes, None]:
        yield csv(USAGE_COLUMNS, (), head=True)
        async for batch in ports.store.usage(invoice_id):
            yield csv(USAGE_COLUMNS, map(_use, batch))

    one = f"{root}/invoices/{{id:[0-9]+}}"
    app.router.add_get(f"{one}.pdf", pdf)
    app.router.add_get(f"{one}.csv", lines)
    app.router.add_get(f"{one}/usage.csv", usage)


def _use(row: Row) -> dict[str, object]:
    return {**row, "timestamp": show_instant(row["at"])}  # type: ignore[arg-type]  # a time


def _name(invoice: Mapping[str, object], suffix: str) -> str:
    return f"{invoice['kind']}-{invoice['number'] or invoice['id']}.{suffix}".replace("_", "-")
