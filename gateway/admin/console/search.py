"""The search of every page: a request id, the beginning of a key, a user's own id, a name.

It is sent as a form and answered in its own answer, so that what is pasted is in no address, whatever it is.
Of a whole key only the prefix that is shown everywhere is looked for or written on a page.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote
from uuid import UUID

from aiohttp import web
from multidict import MultiDict

from gateway.admin import credentials
from gateway.admin.console.cells import cell, references
from gateway.admin.console.desk import Desk, Posted, see
from gateway.admin.console.screens import SCREENS
from gateway.admin.console.sessions import Signed
from gateway.admin.http.listing import FILTER_CHARS_MAX, read_query
from gateway.core.accounts.administration import Row
from gateway.errors import Unprocessable

FOUND_MAX = 20
_SECRET = re.compile(rf"({credentials.ADMIN_TOKEN}|{credentials.API_KEY})([0-9A-Za-z]+)", re.ASCII)
# By which filter each collection is searched, and what is said of a row beside its name.
_BY_NAME = {
    "api-keys": ("prefix", ("prefix", "tenant_id")),
    "users": ("external_id", ("organization_id", "name")),
    "tenants": ("search", ("organization_id",)),
    "organizations": ("search", ()),
}
_BY_REQUEST = {
    "calls": ("created_at", "tenant_id", "model"),
    "credit-transactions": ("timestamp", "organization_id"),
    "feature-usage": ("timestamp", "organization_id"),
}


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that was found: what it is called, what else is said of it, where it is."""

    name: str
    notes: Sequence[str]
    href: str


Hits = list[tuple[str, list[Hit]]]


async def ask(desk: Desk, request: web.Request, signed: Signed, posted: Posted) -> web.Response:
    """`POST /search`: on to the only hit, or all of them."""
    text = posted.get("q", "")
    wanted = reduced(text.strip())[:FILTER_CHARS_MAX] if isinstance(text, str) else ""
    found = await _found(desk, wanted)
    if only := _only(found):
        return see(only)
    return desk.answer(request, signed, "search.html", wanted=wanted, found=found)


async def show(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /search?q=`: what was found."""
    text = request.query.get("q", "").strip()
    wanted = reduced(text)
    if wanted != text:
        return see(f"/search?q={quote(wanted, safe='')}")
    return desk.answer(request, signed, "search.html", wanted=wanted, found=await _found(desk, wanted))


def reduced(text: str) -> str:
    """What is looked for; of anything with a key or an admin token in it the beginning of that."""
    secret = _SECRET.search(text)
    if secret is None or len(secret[2]) <= credentials.SHOWN_CHARS:
        return text
    return secret[1] + secret[2][: credentials.SHOWN_CHARS]


async def _found(desk: Desk, wanted: str) -> Hits:
    if not wanted or len(wanted) > FILTER_CHARS_MAX:
        return []
    with suppress(ValueError):
        return await _of_request(desk, str(UUID(wanted)))
    hits = await asyncio.gather(
        *(_hits(desk, name, by, wanted, notes) for name, (by, notes) in _BY_NAME.items())
    )
    return [(SCREENS[name].title, found) for name, found in zip(_BY_NAME, hits, strict=True) if found]


async def _of_request(desk: Desk, request_id: str) -> Hits:
    """The call of a request; what it moved, where the journal no longer has it."""
    for names in (("calls",), ("credit-transactions", "feature-usage")):
        hits = await asyncio.gather(
            *(_hits(desk, name, "request_id", request_id, _BY_REQUEST[name]) for name in names)
        )
        found = [(SCREENS[name].title, each) for name, each in zip(names, hits, strict=True) if each]
        if found:
            return found
    sent = MultiDict(request_id=request_id, limit=str(FOUND_MAX))
    ledger = desk.operations["token-ledger"]
    rows, _ = await ledger.list(read_query("token-ledger", ledger.resource.filters, sent))
    tenants = sorted({int(str(row["tenant_id"])) for row in rows})
    called = await desk.names({"tenants": set(tenants)})
    asked = f"request_id={request_id}"
    moved = [
        Hit(called.get(("tenants", each), f"tenant {each}"), ("ledger",), f"/tenants/{each}?{asked}#ledger")
        for each in tenants
    ]
    return [("Ledgers", moved)] if moved else []


async def _hits(desk: Desk, name: str, by: str, wanted: str, notes: Sequence[str]) -> list[Hit]:
    screen, operations = SCREENS[name], desk.operations[name]
    sent = MultiDict({by: wanted, "limit": str(FOUND_MAX)})
    try:
        rows, _ = await operations.list(read_query(name, screen.resource.filters, sent))
    except Unprocessable:
        return []
    names = await desk.names(references(screen, rows))
    return [
        Hit(
            str(row.get(screen.resource.named_by) or row["id"]),
            [cell(screen, row, note, names).text for note in notes if row[note] is not None],
            _address(name, row, by, wanted),
        )
        for row in rows
    ]


def _address(name: str, row: Row, by: str, wanted: str) -> str:
    return f"/{name}/{row['id']}" if SCREENS[name].has_page else f"/{name}?{by}={quote(wanted, safe='')}"


def _only(found: Hits) -> str:
    """Where the only hit is."""
    hits = {hit.href for _, each in found for hit in each}
    return hits.pop() if len(hits) == 1 else ""
