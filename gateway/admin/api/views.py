"""The routes of every resource: who asks, what was sent, and the operation's answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from gateway.admin.http.auth import identify, require_write
from gateway.admin.http.body import Body, read_body
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.idempotency import claim_of
from gateway.admin.http.listing import fingerprint, read_query
from gateway.admin.operations import Asked, Done, Operations
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import Action, Part, Resource
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

    async def part(self, request: web.Request, part: Part) -> web.Response:
        """`GET /<resource>/{id}/<part>`: one page."""
        await identify(self._ports, request)
        owner = row_id(request)
        name = f"{self._resource.name}/{owner}/{part.name}"
        query = read_query(name, {}, request.query)
        mark = fingerprint(name, query.filters, descending=query.descending)
        rows, cursor = await self._operations.part(part, owner, query, mark)
        return answer(200, {"items": rows, "next_cursor": cursor})

    async def create(self, request: web.Request) -> web.Response:
        """`POST /<resource>`; a secret made here is in this answer only."""
        return await self._write(request, self._operations.create)

    async def change(self, request: web.Request) -> web.Response:
        """`PATCH /<resource>/{id}`: the fields sent change, the others stay."""
        change = self._operations.change
        return await self._write(request, lambda asked, sent: change(asked, row_id(request), sent))

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /<resource>/{id}`."""
        delete = self._operations.delete
        return await self._write(request, lambda asked, _: delete(asked, row_id(request)))

    async def act(self, request: web.Request, action: Action) -> web.Response:
        """`POST /<resource>/{id}/<action>`."""
        act = self._operations.act
        return await self._write(request, lambda asked, sent: act(action, asked, row_id(request), sent))

    async def _write(
        self, request: web.Request, write: Callable[[Asked, Body], Awaitable[Done]]
    ) -> web.Response:
        actor = await identify(self._ports, request)
        # A reader is told so before anything it sent is looked at.
        require_write(actor)
        sent = {} if request.method == "DELETE" else await read_body(request)
        claim = claim_of(request, actor, sent) if request.method == "POST" else None
        done = await write(Asked(actor, request[REQUEST_ID], claim), sent)
        if done.status == 204:
            return web.Response(status=204)
        headers = {"Idempotent-Replayed": "true"} if done.replayed else {}
        if done.made:
            headers["Location"] = f"/admin/v1/{self._resource.name}/{done.content['id']}"
        return answer(done.status, done.content, headers)


def row_id(request: web.Request) -> int:
    """The id in the path; `NotFound` for what cannot be one."""
    text = request.match_info["id"]
    if text.isascii() and text.isdigit() and len(text) <= 16 and 0 < int(text) <= INTEGER_MAX:
        return int(text)
    raise NotFound
