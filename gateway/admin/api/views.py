"""The routes of every resource: authentication, request body, and the operation's answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

from aiohttp import web

from gateway.admin.http.bodies import Body, claim_of, read_body
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.requests import (
    fingerprint,
    read_query,
    require_read,
    require_write,
)
from gateway.admin.operations import Operations, WriteRequest, WriteResult
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.resource import Action, Resource, SubResource
from gateway.core.accounts.administration import (
    CREATE,
    DELETE,
    Query,
)
from gateway.core.model import INTEGER_MAX
from gateway.errors import (
    NotFound,
)


def answer(status: int, content: object, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return web.Response(
        status=status, body=text.encode(), content_type="application/json", charset="utf-8", headers=headers
    )


class ResourceHandlers:
    def __init__(self, ports: AdminPorts, resource: Resource) -> None:
        self._ports = ports
        self._resource = resource

    async def list(self, request: web.Request) -> web.Response:
        """`GET /<resource>`: one page of the rows."""
        operations = await self._reading(request)
        resource = self._resource
        query = read_query(resource.name, resource.filters, request.query, tagged=resource.tagged)
        rows, cursor = await operations.list(query)
        return answer(200, {"items": rows, "next_cursor": cursor})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /<resource>/{id}`: one row."""
        operations = await self._reading(request)
        name = request.match_info["id"]
        if "id" in self._resource.filters and not name.isdigit():  # named by callers or upstreams
            rows, _ = await operations.list(Query({"id": name}, None, None, None, 1))
            if not rows:
                raise NotFound
            return answer(200, rows[0])
        return answer(200, await operations.show(row_id(request)))

    async def part(self, request: web.Request, part: SubResource) -> web.Response:
        """`GET /<resource>/{id}/<part>`: one page of a row's parts."""
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
        verb = self._resource.patch_verb
        return await self._write(
            request, verb, lambda on, asked, sent: on.change(asked, row_id(request), sent)
        )

    async def delete(self, request: web.Request) -> web.Response:
        return await self._write(request, DELETE, lambda on, asked, _: on.delete(asked, row_id(request)))

    async def act(self, request: web.Request, action: Action) -> web.Response:
        """`POST /<resource>/{id}/<action>`: run an action on a row."""
        return await self._write(
            request, action.name, lambda on, asked, sent: on.act(action, asked, row_id(request), sent)
        )

    async def write_part(self, request: web.Request, part: SubResource, action: Action) -> web.Response:
        """Set or delete one part of a row: `PUT` or `DELETE /<resource>/{id}/<part>/{name}`."""
        # As it was sent: what aiohttp gives has some characters encoded, and others not.
        # Bytes that are no UTF-8 stay unprintable, so that the field is refused.
        named = unquote(request.rel_url.raw_path.rpartition("/")[2], errors="surrogateescape")
        return await self._write(
            request,
            action.name,
            lambda on, asked, sent: on.write_part(
                part, action, asked, row_id(request), named=named, sent=sent
            ),
        )

    async def _reading(self, request: web.Request) -> Operations:
        ports = await admit(self._ports, request)
        require_read(ports.actor, self._resource)
        return Operations(ports, self._resource)

    async def _write(
        self,
        request: web.Request,
        verb: str,
        write: Callable[[Operations, WriteRequest, Body], Awaitable[WriteResult]],
    ) -> web.Response:
        """Check rights and body of a writing request, run `write`, and answer with its result."""
        ports = await admit(self._ports, request)
        # Missing rights are refused before the body is checked.
        require_write(ports.actor, self._resource, verb)
        sent: Body = {}
        if request.method != "DELETE":
            sent = await read_body(request, needed=request.method == "PATCH")
        claim = claim_of(request, ports.actor, sent) if request.method == "POST" else None
        done = await write(Operations(ports, self._resource), WriteRequest(request[REQUEST_ID], claim), sent)
        if done.status == 204:
            return web.Response(status=204)
        headers = {"Idempotent-Replayed": "true"} if done.replayed else {}
        if done.made:
            headers["Location"] = f"/admin/v1/{self._resource.name}/{done.content['id']}"
        return answer(done.status, done.content, headers)


def row_id(request: web.Request) -> int:
    """Return the id in the path; raise `NotFound` for a text that is no id."""
    text = request.match_info["id"]
    if text.isascii() and text.isdigit() and len(text) <= 16 and 0 < int(text) <= INTEGER_MAX:
        return int(text)
    raise NotFound
