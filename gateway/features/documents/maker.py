"""Documents of invoices, PDF and XML: created once, stored, and served below the invoice's address."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web

from gateway.admin.api.usage import name_of, read_invoice
from gateway.admin.api.views import row_id
from gateway.admin.http.guard import headers_of, in_thread
from gateway.admin.http.work_slots import ConcurrencyLimits, WorkSlots
from gateway.admin.ports import AdminPorts, Admit
from gateway.core.accounts.administration import Actor, Row
from gateway.errors import Conflict, Overloaded, Unprocessable
from gateway.features.documents.e_invoice import EN_16931, PEPPOL, PROFILES, Profile
from gateway.features.documents.renderer import FACTUR_X, KINDS, UBL, InvoiceRenderer

if TYPE_CHECKING:
    from persistence.store import Store

XML = "application/xml"
# Suffixes of files by syntax.
SUFFIXES = {FACTUR_X: "xml", UBL: "ubl.xml"}
# Documents in progress or waiting.
UNDER_WAY = ConcurrencyLimits(staff_max=32, own_max=8, others_max=32)
# One at a time: 10,000 lines take a core for a few seconds, and up to 800 MB.
MADE = ConcurrencyLimits(1, 1, 1, all_max=1, waiting_max=32, wait_s=None)
# How long a request waits for its document: less than the timeout of a request.
WAIT_S = 20.0
RETRY_S = 5
# Cached PDFs of drafts, and the largest size of one.
DRAFTS_KEPT_MAX, DRAFT_BYTES_MAX = 32, 1024 * 1024

# An invoice's id, the kind of document, and the invoice's status, or for a draft the digest of its contents.
Which = tuple[int, str, str]


def mount_documents(
    logo: Path | None, app: web.Application, ports: AdminPorts, root: str, admitted: Admit
) -> None:
    """Serve the documents below an invoice's address. `admitted` authenticates a request."""
    if _MAKER not in app:  # one for the Admin API and the console
        app[_MAKER] = DocumentMaker(InvoiceRenderer(ports.store.letterhead, logo))
        app.on_cleanup.append(app[_MAKER].stop)
    made = app[_MAKER]

    async def pdf(request: web.Request) -> web.Response:
        mine, invoice = await read_invoice(request, ports, admitted)
        content = await made.pdf(mine, row_id(request), invoice)
        return _file(name_of(invoice, "pdf"), "application/pdf", content)

    async def xml(request: web.Request) -> web.Response:
        profile = _read_profile(request)
        syntax = _read_syntax(request, profile)
        mine, invoice = await read_invoice(request, ports, admitted)
        content = await made.xml(mine, row_id(request), invoice, syntax, profile)
        response = _file(name_of(invoice, SUFFIXES[syntax]), XML, content)
        response.headers["Vary"] = "Accept"
        return response

    path = f"{root}/invoices/{{id:[0-9]+}}"
    app.router.add_get(f"{path}.pdf", pdf)
    app.router.add_get(f"{path}.xml", xml)


class DocumentRequester(Protocol):
    """The caller who asks for a document."""

    @property
    def store(self) -> Store:
        """The store, limited to rows that the caller may read."""

    @property
    def actor(self) -> Actor:
        """The identity and role of the caller."""


class DocumentMaker:
    """Creates each document once, and stores those of final invoices.

    Such a document is finished however long it takes. A caller waits for a limited time, and finds it later.
    """

    def __init__(
        self, renderer: InvoiceRenderer, wait_s: float = WAIT_S, under_way: ConcurrencyLimits = UNDER_WAY
    ) -> None:
        self._renderer = renderer
        self._wait_s = wait_s
        self._places, self._making = WorkSlots(under_way), WorkSlots(MADE)
        self._under_way: dict[Which, asyncio.Task[bytes]] = {}
        # The most recently used draft is the last.
        self._drafts: dict[Which, bytes] = {}

    async def pdf(self, mine: DocumentRequester, invoice_id: int, invoice: Row) -> bytes:
        """Return the PDF. That of a final invoice contains its XML if possible."""
        status = str(invoice["status"])
        if status == "draft":
            return await self._draft(mine, invoice_id, invoice)
        if (known := await mine.store.document(invoice_id, "pdf", status)) is not None:
            return known
        return await self._make_once(
            mine, (invoice_id, "pdf", status), partial(self._make_pdf, mine, invoice_id, invoice)
        )

    async def xml(
        self,
        mine: DocumentRequester,
        invoice_id: int,
        invoice: Row,
        syntax: str,
        profile: Profile = EN_16931,
    ) -> bytes:
        """Return the XML. For a void invoice it must exist already, as XML cannot say that it is void."""
        kind = KINDS[profile, syntax]
        if (known := await mine.store.document(invoice_id, kind, "finalized")) is not None:
            return known
        make = partial(self._xml, mine, invoice_id, invoice, syntax, profile)
        return await self._make_once(mine, (invoice_id, kind, "finalized"), make)

    async def _draft(self, mine: DocumentRequester, invoice_id: int, invoice: Row) -> bytes:
        """Return the PDF of a draft, cached by the contents of the draft."""
        text = json.dumps(invoice, sort_keys=True, default=str)
        key = (invoice_id, "pdf", hashlib.sha256(text.encode()).hexdigest())
        if key not in self._drafts:
            make = partial(in_thread, self._renderer.pdf, invoice)
            content = await self._make_once(mine, key, make)
            if len(content) <= DRAFT_BYTES_MAX:
                self._drafts[key] = content
            while len(self._drafts) > DRAFTS_KEPT_MAX:
                del self._drafts[next(iter(self._drafts))]
            return content
        self._drafts[key] = content = self._drafts.pop(key)
        return content

    async def stop(self, _: web.Application) -> None:
        """Cancel all documents in progress."""
        under_way = list(self._under_way.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _make_once(
        self, mine: DocumentRequester, key: Which, make: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> bytes:
        """Return the document `key`; `make` makes it in a task, unless a task is already doing so.

        Raise `Overloaded` if it is not ready in time.
        """
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._make_in_slot(mine, make))
            task.add_done_callback(partial(self._ended, key))
        done, _ = await asyncio.wait({task}, timeout=self._wait_s)
        if not done:
            raise Overloaded("The document is being made: ask again in a while.", retry_after_s=RETRY_S)
        return task.result()

    async def _make_in_slot(
        self, mine: DocumentRequester, make: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> bytes:
        whose = mine.actor.organization_id
        async with self._places.of(whose), self._making.of(whose):
            return await make()

    def _ended(self, key: Which, task: asyncio.Task[bytes]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            # Waiting callers get the error. Without any, the next caller starts again.
            task.exception()

    async def _make_pdf(self, mine: DocumentRequester, invoice_id: int, invoice: Row) -> bytes:
        """Return an invoice as PDF; a final one has its XML inside, if it fits the norm."""
        status = str(invoice["status"])
        try:
            content = await self._xml(mine, invoice_id, invoice) if status == "finalized" else b""
        except (Unprocessable, Conflict):
            content = b""
        make = partial(self._renderer.pdf, invoice, content)
        return await self._keep(mine, invoice_id, "pdf", status, make)

    async def _xml(
        self,
        mine: DocumentRequester,
        invoice_id: int,
        invoice: Row,
        syntax: str = FACTUR_X,
        profile: Profile = EN_16931,
    ) -> bytes:
        """Return an invoice as XML, stored or made now."""
        kind = KINDS[profile, syntax]
        if (known := await mine.store.document(invoice_id, kind, "finalized")) is not None:
            return known
        make = partial(self._renderer.xml, invoice, syntax, profile)
        return await self._keep(mine, invoice_id, kind, "finalized", make)

    async def _keep(
        self, mine: DocumentRequester, invoice_id: int, kind: str, status: str, make: Callable[[], bytes]
    ) -> bytes:
        kept = await mine.store.document(invoice_id, kind, status, await in_thread(make))
        assert kept is not None
        return kept


_MAKER = web.AppKey("documents", DocumentMaker)


def _read_profile(request: web.Request) -> Profile:
    """Return the profile of EN 16931 that a query names."""
    asked = request.query.get("profile", EN_16931.name)
    if asked not in PROFILES:
        raise Unprocessable(errors=(("profile", f"must be one of {', '.join(PROFILES)}"),))
    return PROFILES[asked]


def _read_syntax(request: web.Request, profile: Profile) -> str:
    """Return the syntax that the query or the `Accept` header names. Peppol accepts UBL alone."""
    asked = request.query.get("format")
    if profile is PEPPOL:
        if asked not in {None, UBL}:
            raise Unprocessable(errors=(("format", f"must be {UBL}: Peppol takes no other"),))
        return UBL
    if asked is None:
        return UBL if UBL in request.headers.get("Accept", "").lower() else FACTUR_X
    if asked not in SUFFIXES:
        raise Unprocessable(errors=(("format", f"must be one of {', '.join(SUFFIXES)}"),))
    return asked


def _file(name: str, media: str, content: bytes) -> web.Response:
    """Return a response with a document and its digest (RFC 9530)."""
    digest = b64encode(hashlib.sha256(content).digest()).decode()
    headers = {**headers_of(name, media), "Repr-Digest": f"sha-256=:{digest}:"}
    return web.Response(body=content, headers=headers)
