"""Documents of invoices: PDF, lines as CSV, and every use they bill as CSV."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.http.auth import admit, require_read
from gateway.admin.http.files import CSV, Files, headers_of
from gateway.admin.ports import AdminPorts, Store
from gateway.admin.resources import RESOURCES
from gateway.core.accounts.administration import Row
from gateway.core.spreadsheet import csv

LINE_COLUMNS = (
    "position", "kind", "description", "service_id", "service", "tenant_id", "tenant", "quantity",
    "unit_price", "amount", "currency",
)  # fmt: skip

Admit = Callable[[AdminPorts, web.Request], Awaitable[AdminPorts]]


def mount_invoices(app: web.Application, ports: AdminPorts, root: str, admitted: Admit = admit) -> None:
    """Serve the documents below an invoice's address; before the resources, whose paths are wider.

    `admitted` names who asks.
    """
    resource = RESOURCES["invoices"]
    files = Files(ports.request_timeout_s)

    async def read(request: web.Request) -> tuple[Store, Row]:
        mine = await admitted(ports, request)
        require_read(mine.actor, resource)
        return mine.store, resource.render(await mine.store.get("invoices", row_id(request)))

    async def pdf(request: web.Request) -> web.Response:
        store, invoice = await read(request)
        set_ = partial(ports.invoice_renderer.pdf, invoice)
        if invoice["status"] == "draft":
            made = await asyncio.to_thread(set_)
        else:
            made = await _kept(store, row_id(request), "pdf", str(invoice["status"]), set_)
        return _file(_name(invoice, "pdf"), "application/pdf", made)

    async def lines(request: web.Request) -> web.Response:
        _, invoice = await read(request)
        rows = ({**line, "currency": invoice["currency"]} for line in invoice["lines"])  # type: ignore[attr-defined]  # a list of lines
        made = csv(LINE_COLUMNS, rows, head=True)
        return web.Response(body=made, headers=headers_of(_name(invoice, "csv"), CSV))

    async def usage(request: web.Request) -> web.StreamResponse:
        store, invoice = await read(request)
        pieces = uses(store, row_id(request))
        return await files.answer(request, _name(invoice, "usage.csv"), CSV, pieces)

    async def uses(store: Store, invoice_id: int) -> AsyncGenerator[bytes, None]:
        async for piece in store.usage(invoice_id):
            yield piece

    one = f"{root}/invoices/{{id:[0-9]+}}"
    app.router.add_get(f"{one}.pdf", pdf)
    app.router.add_get(f"{one}.csv", lines)
    app.router.add_get(f"{one}/usage.csv", usage)


async def _kept(store: Store, invoice_id: int, kind: str, status: str, make: Callable[[], bytes]) -> bytes:
    """A document as it was made the first time, by whoever came first."""
    known = await store.document(invoice_id, kind, status)
    if known is None:
        known = await store.document(invoice_id, kind, status, await asyncio.to_thread(make))
    assert known is not None
    return known


def _file(name: str, media: str, content: bytes) -> web.Response:
    """A document with its digest (RFC 9530)."""
    digest = b64encode(hashlib.sha256(content).digest()).decode()
    headers = {**headers_of(name, media), "Repr-Digest": f"sha-256=:{digest}:"}
    return web.Response(body=content, headers=headers)


def _name(invoice: Mapping[str, object], suffix: str) -> str:
    return f"{invoice['kind']}-{invoice['number'] or invoice['id']}.{suffix}".replace("_", "-")
