"""The routes of every resource: who asks, what was sent, and the operation's answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

from gateway.admin.auth import identify, require_write
from gateway.admin.guard import REQUEST_ID
from gateway.admin.idempotency import claim_of
from gateway.admin.listing import read_query
from gateway.admin.operations import Asked, Done, Operations
from gateway.admin.ports import AdminPorts
from gateway.admin.reading import read_body
from gateway.admin.resources import RESOURCES, Action, Resource
from gateway.core.accounts.administration import Actor
from gateway.core.model import INTEGER_MAX
from gateway.errors import NotFound


def answer(status: int, content: object, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return web.Response(
        status=status, body=text.encode(), content_type="application/json", charset="utf-8", headers=headers
    )


class Views:
    """The handlers of one resource."""

    def __init__(self, ports: AdminPorts, resource: Resource) -> None:
        self._ports = ports
        self._resource = resource
        self._operations = Operations(ports, resource)

    async def list(self, request: web.Request) -> web.Response:
        """`GET /<resource>`: one page."""
        await identify(self._ports, request)
        query = read_query(self._resource.name, self._resource.filters, request.query)
        rows, cursor = await self._operations.list(query)
        return answer(200, {"items": rows, "next_cursor": cursor})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /<resource>/{id}`."""
        await identify(self._ports, request)
        return answer(200, await self._operations.show(row_id(request)))

    async def create(self, request: web.Request) -> web.Response:
        """`POST /<resource>`; a secret made here is in this answer only."""
        actor = await self._writer(request)
        sent = await read_body(request)
        asked = Asked(actor, request[REQUEST_ID], claim_of(request, actor, sent))
        return self._answer(await self._operations.create(asked, sent), self._resource)

    async def change(self, request: web.Request) -> web.Response:
        """`PATCH /<resource>/{id}`: the fields sent change, the others stay."""
        asked = Asked(await self._writer(request), request[REQUEST_ID])
        done = await self._operations.change(asked, row_id(request), await read_body(request))
        return self._answer(done, self._resource)

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /<resource>/{id}`."""
        asked = Asked(await self._writer(request), request[REQUEST_ID])
        return self._answer(await self._operations.delete(asked, row_id(request)), self._resource)

    async def act(self, request: web.Request, action: Action) -> web.Response:
        """`POST /<resource>/{id}/<action>`."""
        actor = await self._writer(request)
        sent = await read_body(request)
        asked = Asked(actor, request[REQUEST_ID], claim_of(request, actor, sent))
        done = await self._operations.act(action, asked, row_id(request), sent)
        return self._answer(done, RESOURCES["tenant-quotas"] if action.quota else self._resource)

    async def _writer(self, request: web.Request) -> Actor:
        # A reader is told so before anything it sent is looked at.
        actor = await identify(self._ports, request)
        require_write(actor)
        return actor

    def _answer(self, done: Done, answers: Resource) -> web.Response:
        if done.status == 204:
            return web.Response(status=204)
        headers = {}
        if done.replayed:
            headers["Idempotent-Replayed"] = "true"
        if done.made:
            headers["Location"] = f"/admin/v1/{answers.name}/{done.content['id']}"
        return answer(done.status, done.content, headers)


def row_id(request: web.Request) -> int:
    """The id in the path; `NotFound` for what cannot be one."""
    text = request.match_info["id"]
    if text.isascii() and text.isdigit() and len(text) <= 16 and 0 < int(text) <= INTEGER_MAX:
        return int(text)
    raise NotFound
