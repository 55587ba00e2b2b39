"""What the routes of every resource do: list, create, show, change, delete, act.

A write is one transaction in the store, then a push of the control writes it left behind:
applied answers 200 or 201, not yet applied 202, refused by the counters 409.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping

from aiohttp import web

from gateway.admin import body, credentials, live
from gateway.admin.auth import identify, require_write
from gateway.admin.guard import REQUEST_ID
from gateway.admin.listing import encode_cursor, fingerprint, read_query
from gateway.admin.ports import INLINE_PUSHES_MAX, AdminPorts
from gateway.admin.reading import read_body
from gateway.admin.resources import RESOURCES, Action, Resource
from gateway.core.administration import Actor, Claim, Command, Replay, Row, Written
from gateway.core.model import INTEGER_MAX
from gateway.errors import AdminRefusal, Conflict, NotFound, Unprocessable

_IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}", re.ASCII)

_log = logging.getLogger("tollkeeper.admin")


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
        await identify(self._ports, request)
        resource = self._resource
        query = read_query(resource.name, resource.filters, request.query)
        page = await self._ports.store.page(resource.name, query)
        rows = await live.overlay(self._ports, resource.live, page.rows)
        cursor = None
        if page.next_after is not None:
            mark = fingerprint(resource.name, query.filters, descending=query.descending)
            cursor = encode_cursor(page.next_after, mark)
        return answer(200, {"items": [resource.render(row) for row in rows], "next_cursor": cursor})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /<resource>/{id}`."""
        await identify(self._ports, request)
        row = await self._ports.store.get(self._resource.name, _row_id(request))
        return answer(200, await self._render(self._resource, row))

    async def create(self, request: web.Request) -> web.Response:
        """`POST /<resource>`; a secret made here is in this answer only."""
        actor = await self._writer(request)
        resource = self._resource
        sent = await read_body(request)
        assert resource.create is not None
        values = body.check(resource.create, sent, known=resource.known)
        claim = _claim(request, actor, sent)
        once: dict[str, object] = {}
        if resource.secret is not None:
            minted = credentials.mint(resource.secret.prefix)
            if resource.secret.kept:
                values[resource.secret.field] = minted.secret
            else:
                values |= {"digest": self._ports.digest(minted.secret), "prefix": minted.prefix}
            once[resource.secret.field] = minted.secret
        command = Command(
            resource.name, "create", actor, request[REQUEST_ID], resource.render, None, values, claim
        )
        return await self._do(command, resource, 201, once)

    async def change(self, request: web.Request) -> web.Response:
        """`PATCH /<resource>/{id}`: the fields sent change, the others stay."""
        actor = await self._writer(request)
        resource = self._resource
        assert resource.patch is not None
        values = body.check(resource.patch, await read_body(request), known=resource.known)
        command = Command(
            resource.name,
            resource.patch_verb,
            actor,
            request[REQUEST_ID],
            resource.render,
            _row_id(request),
            values,
        )
        return await self._do(command, resource, 200)

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /<resource>/{id}`."""
        actor = await self._writer(request)
        resource = self._resource
        row_id, request_id = _row_id(request), request[REQUEST_ID]
        if resource.settle_first is not None:
            first = Command(resource.name, resource.settle_first, actor, request_id, resource.render, row_id)
            settled = await self._do(first, resource, 200)
            if settled.status != 200:
                return settled
        command = Command(resource.name, "delete", actor, request_id, resource.render, row_id)
        done = await self._do(command, resource, 204)
        return web.Response(status=204) if done.status == 204 else done

    async def act(self, request: web.Request, action: Action) -> web.Response:
        """`POST /<resource>/{id}/<action>`."""
        actor = await self._writer(request)
        sent = await read_body(request)
        values: Row = {}
        if action.body is not None:
            values = body.check(action.body, sent)
        elif sent:
            raise _no_fields(sent)
        answers = RESOURCES["tenant-quotas"] if action.quota else self._resource
        claim = _claim(request, actor, sent)
        row_id = _row_id(request)
        if action.settles:
            row = await self._ports.store.get(self._resource.name, row_id)
            # What is final already is refused, or answered again, without waiting for anything.
            if row["status"] == "draft":
                await self._ports.books.close(int(str(row["organization_id"])))
        command = Command(
            self._resource.name,
            action.name,
            actor,
            request[REQUEST_ID],
            answers.render,
            row_id,
            values,
            claim,
        )
        return await self._do(command, answers, 200)

    async def _writer(self, request: web.Request) -> Actor:
        actor = await identify(self._ports, request)
        require_write(actor)
        return actor

    async def _do(
        self, command: Command, answers: Resource, status: int, once: Mapping[str, object] | None = None
    ) -> web.Response:
        done = await self._ports.store.write(command)
        if isinstance(done, Replay):
            return _replayed(done, status)
        try:
            if not await self._push(done):
                status = 202
        except Conflict as refused:
            if command.claim is not None:
                await self._ports.store.finish(command.claim, refused.status, {"detail": refused.message})
            raise
        if status == 204:
            return web.Response(status=204)
        content = await self._render(answers, done.row)
        if command.claim is not None:
            await self._ports.store.finish(command.claim, status, content)
        made = command.verb == "create"
        headers = {"Location": f"/admin/v1/{answers.name}/{content['id']}"} if made else None
        return answer(status, {**content, **(once or {})}, headers)

    async def _push(self, written: Written) -> bool:
        """Push what was written; False if something of it is applied later."""
        accounts = list(dict.fromkeys(intent.account for intent in written.intents))
        applied = len(accounts) <= INLINE_PUSHES_MAX
        try:
            async with asyncio.timeout(self._ports.push_timeout_s):
                for account in accounts[:INLINE_PUSHES_MAX]:
                    applied = await self._ports.pusher.push(account) and applied
        except Exception:  # noqa: BLE001  # the intent is committed: whatever fails here is done later
            _log.warning("control writes wait", exc_info=True, extra={"accounts": accounts[:8]})
            return False
        if accounts:
            refusal = await self._ports.store.refusal([intent.id for intent in written.intents])
            if refusal is not None:
                raise Conflict(refusal)
        return applied

    async def _render(self, resource: Resource, row: Row) -> Row:
        [row] = await live.overlay(self._ports, resource.live, [row])
        return resource.render(row)


def _row_id(request: web.Request) -> int:
    text = request.match_info["id"]
    if text.isascii() and text.isdigit() and len(text) <= 16 and 0 < int(text) <= INTEGER_MAX:
        return int(text)
    raise NotFound


def _claim(request: web.Request, actor: Actor, sent: body.Body) -> Claim | None:
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not _IDEMPOTENCY_KEY.fullmatch(key):
        raise AdminRefusal("Idempotency-Key must be sent once, as 1 to 255 printable ASCII characters.")
    return Claim(actor.scope, key, request.method, request.path, body.digest(sent))


def _replayed(first: Replay, status: int) -> web.Response:
    if first.status == Conflict.status:
        raise Conflict(str(first.body["detail"]))
    return answer(first.status or status, first.body, {"Idempotent-Replayed": "true"})


def _no_fields(sent: body.Body) -> Unprocessable:
    return Unprocessable(errors=tuple((name, "unknown field") for name in sent))
