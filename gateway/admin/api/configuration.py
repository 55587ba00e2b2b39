"""`/configuration`: what is written down of it, what a file would change, and that it is applied."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.configuration.applying import Configurator, Wish
from gateway.admin.configuration.exporting import export
from gateway.admin.configuration.words import schema
from gateway.admin.http import body
from gateway.admin.http.auth import admit, require_read, require_write
from gateway.admin.http.guard import DEADLINE, REQUEST_ID
from gateway.admin.http.idempotency import claim_of
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import REPORTS
from gateway.admin.resources.configuration import SCHEMA, ConfigurationApply
from gateway.core.accounts.administration import REQUEST_S_MAX
from gateway.errors import Overloaded, UnsupportedEncoding

APPLY_S_MAX = 300.0
APPLIES_MAX = 2
CONFIGURATION_BYTES_MAX = 16 * 1024 * 1024
REPORT = REPORTS["configuration"]


def _now() -> datetime:
    return datetime.now(UTC)


class _Turns:
    """So many of these at once, each with a while."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(APPLIES_MAX)

    @asynccontextmanager
    async def taken(self, request: web.Request) -> AsyncIterator[None]:
        """Have one; `Overloaded` where all are taken."""
        if self._free.locked():
            raise Overloaded(f"{APPLIES_MAX} of these are under way already: try again in a while.")
        async with self._free:
            request[DEADLINE].reschedule(asyncio.get_running_loop().time() + APPLY_S_MAX)
            yield


def mount_configuration(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve what is written down, plans, and their being done."""
    turns = _Turns()

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, REPORT)
        async with turns.taken(request):
            return answer(200, await export(mine))

    async def apply(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        assert REPORT.run is not None
        require_write(mine.actor, REPORT, REPORT.run.name)
        async with turns.taken(request):
            sent = await asyncio.to_thread(body.parse, await _read(request))
            wish = Wish(**body.check(ConfigurationApply, sent))  # type: ignore[arg-type]  # as it is checked
            claim = claim_of(request, mine.actor, sent)
            if wish.digest is None:  # a plan changes nothing
                claim = None
            if claim is not None:
                claim = replace(claim, running_s_max=APPLY_S_MAX + REQUEST_S_MAX)
            done = await Configurator(mine, request[REQUEST_ID], _now, claim).do(wish)
        headers = {"Idempotent-Replayed": "true"} if done.replayed else None
        return answer(done.status, done.content, headers)

    async def schema_of(_: web.Request) -> web.Response:  # anybody may ask: it says nothing of what is there
        return web.Response(body=_schema(), content_type="application/schema+json", charset="utf-8")

    app.router.add_get(f"{root}/configuration", show)
    app.router.add_post(f"{root}/configuration", apply)
    app.router.add_get(f"{root}/configuration{SCHEMA}", schema_of)


@cache
def _schema() -> bytes:
    return json.dumps(schema(), ensure_ascii=False, separators=(",", ":")).encode()


async def _read(request: web.Request) -> bytes:
    """What was sent, as it came: more than other requests may send."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    read = bytearray()
    async for piece in request.content.iter_any():
        read += piece
        if len(read) > CONFIGURATION_BYTES_MAX:
            raise web.HTTPRequestEntityTooLarge(CONFIGURATION_BYTES_MAX, len(read))
    return bytes(read)
