"""The routes of every resource: who asks, what was sent, and the operation's answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from gateway.admin.http.auth import admit, require_read, require_write
from gateway.admin.http.body import Body, read_body
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.idempotency import claim_of
from gateway.admin.http.listing import fingerprint, read_query
from gateway.admin.operations import Asked, Done, Operations
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import Action, Part, Resource
from gateway.core.accounts.roles import CREATE, DELETE
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

    async def list(self, request: web.Request) -> web.Response:
        """`GET /<resource>`: one page."""
        operations = await self._reading(request)
        query = read_query(self._resource.name, self._resource.filters, request.query)
        rows, cursor = await operations.list(query)
        return answer(200, {"items": rows, "next_cursor": cursor})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /<resource>/{id}`."""
        operations = await self._reading(request)
        return answer(200, await operations.show(row_id(request)))

    async def part(self, request: web.Request, part: Part) -> web.Response:
        """`GET /<resource>/{id}/<part>`: one page."""
        operations = await self._reading(request)
        owner = row_id(request)
        name = f"{self._resource.name}/{owner}/{part.name}"
        query = read_query(name, {}, request.query)
        mark = fingerprint(name, query.filters, descending=query.descending)
        rows, cursor = await operations.part(part, owner, query, mark)
        return answer(200, {"items": rows, "next_cursor": cursor})

    async def create(self, request: web.Request) -> web.Response:
        """`POST /<resource>`; a secret made here is in this answer only."""
        return await self._write(request, CREATE, lambda on, asked, sent: on.create(asked, sent))

    async def change(self, request: web.Request) -> web.Response:
        """`PATCH /<resource>/{id}`: the fields sent change, the others stay."""
        verb = self._resource.patch_verb
        return await self._write(
            request, verb, lambda on, asked, sent: on.change(asked, row_id(request), sent)
        )

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /<resource>/{id}`."""
        return await self._write(request, DELETE, lambda on, asked, _: on.delete(asked, row_id(request)))

    async def act(self, request: web.Request, action: Action) -> web.Response:
        """`POST /<resource>/{id}/<action>`."""
        return await self._write(
            request, action.name, lambda on, asked, sent: on.act(action, asked, row_id(request), sent)
        )

    async def _reading(self, request: web.Request) -> Operations:
        ports = await admit(self._ports, request)
        require_read(ports.actor, self._resource)
        return Operations(ports, self._resource)

    async def _write(
        self,
        request: web.Request,
        verb: str,
        write: Callable[[Operations, Asked, Body], Awaitable[Done]],
    ) -> web.Response:
        ports = await admit(self._ports, request)
        # Who may not is told so before anything it sent is looked at.
        require_write(ports.actor, self._resource, verb)
        sent: Body = {}
        if request.method != "DELETE":
            sent = await read_body(request, needed=request.method == "PATCH")
        claim = claim_of(request, ports.actor, sent) if request.method == "POST" else None
        done = await write(Operations(ports, self._resource), Asked(request[REQUEST_ID], claim), sent)
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
