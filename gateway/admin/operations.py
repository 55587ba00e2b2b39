"""The operations on a resource for all callers: the Admin API's routes and the console's pages use them.

A write is one transaction in the store, then a push of its control writes. The status is 200, 201 or 204 if
they are applied, 202 if not yet; `Conflict` is raised if the counters refuse them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from gateway.admin import credentials, live
from gateway.admin.http import bodies
from gateway.admin.http.bodies import checked
from gateway.admin.http.requests import encode_cursor, fingerprint, require_read, require_write
from gateway.admin.live import push
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.form_fields import Secret
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import Action, Resource, SubResource
from gateway.core.accounts.administration import (
    CREATE,
    DELETE,
    OWNER,
    TENANT,
    Claim,
    Command,
    Place,
    Query,
    Realm,
    Row,
    StoredReply,
)
from gateway.core.issuers import known_as
from gateway.errors import AccountsOpen, Conflict, StoreUnavailable, Unprocessable

T = TypeVar("T")
_log = logging.getLogger("tollkeeper.admin")

# The functions that read parts of a row.
PARTS = {
    ("budgets", "accounts"): live.budget_accounts, ("budgets", "overrides"): live.budget_overrides,
    ("organizations", "unbilled"): live.unbilled,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """The request id of a write, and its idempotency key if it has one."""

    request_id: str
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The result of a write: status and body of the answer; `made` if a row was created."""

    status: int
    content: Row = field(default_factory=dict)
    made: bool = False
    replayed: bool = False


def mint(ports: AdminPorts, secret: Secret, values: Row) -> tuple[Row, Row]:
    """Create a secret; return the values to store in its row, and the fields that only the answer has."""
    if not secret.is_made(values):
        named = known_as(*(str(values[name]) for name in secret.instead))
        return {**_digested(ports, named), "prefix": ""}, {}
    minted = credentials.mint_credential(secret.prefix)
    once = {secret.field: minted.secret}
    if secret.kept:
        return once, once
    return {**_digested(ports, minted.secret), "prefix": minted.prefix}, once


def _digested(ports: AdminPorts, credential: str) -> Row:
    """Return the stored form of a credential: its digest and the pepper's id."""
    return {"digest": ports.peppers.digest(credential), "pepper": ports.peppers.ids[0]}


async def finish(ports: AdminPorts, claim: Claim, status: int, content: Row, request_id: str) -> None:
    """Store the answer to a request with an idempotency key, for its repetition.

    If that fails, the answer stored with the write itself remains.
    """
    try:
        await ports.store.finish(claim, content, status)
    except StoreUnavailable:
        _log.warning("an answer is not kept", extra={"request_id": request_id})


async def write_closed(ports: AdminPorts, write: Callable[[frozenset[Realm]], Awaitable[T]]) -> T:
    """Return the result of a write, which gets the organizations and tenants whose accounts are closed.

    If the write compares stored money of an organization with open accounts, these are closed, and the write
    is repeated.
    """
    closed = frozenset[Realm]()
    while True:
        try:
            return await write(closed)
        except AccountsOpen as accounts:
            realm = Realm(accounts.organization_id, accounts.tenant_id)
            await ports.account_closing.settle(realm)
            closed |= {realm}


class Operations:
    """The operations on one resource, within the rights of the caller's role and organization.

    `read` is the name of a shorter form of its rows in the store.
    """

    def __init__(self, ports: AdminPorts, resource: Resource, *, read: str | None = None) -> None:
        self._ports = ports
        self.resource = resource
        self._read = read or resource.name
        self._actor = ports.actor

    async def list(self, query: Query) -> tuple[Sequence[Row], str | None]:
        rows, after = await self._page(query)
        cursor = None
        if after is not None:
            mark = fingerprint(self.resource.name, query.filters, descending=query.descending)
            cursor = encode_cursor(after, mark)
        return rows, cursor

    async def every(self, query: Query) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows, in batches of the query's limit."""
        after = query.after
        while True:
            rows, after = await self._page(replace(query, after=after))
            yield rows
            if after is None:
                return

    async def count(self, query: Query, most: int, within_ms: int) -> int | None:
        """Return the number of rows, at most `most` + 1; None if counting takes longer than `within_ms`."""
        require_read(self._actor, self.resource)
        return await self._ports.store.count(self._read, query, most, within_ms)

    async def _page(self, query: Query) -> tuple[Sequence[Row], Place | None]:
        require_read(self._actor, self.resource)
        page = await self._ports.store.page(self._read, query)
        rows = await live.overlay(self._ports, self.resource.live, page.rows)
        return [self.resource.render(row) for row in rows], page.next_after

    async def show(self, row_id: int) -> Row:
        """Return one row as JSON; raise `NotFound` if there is none."""
        require_read(self._actor, self.resource)
        return await self._render(self.resource, await self._ports.store.get(self._read, row_id))

    async def part(
        self, part: SubResource, row_id: int, query: Query, mark: str
    ) -> tuple[Sequence[Row], str | None]:
        require_read(self._actor, self.resource)
        row = await self._ports.store.get(self._read, row_id)
        page = await PARTS[self.resource.name, part.name](self._ports, row, query)
        rows = [part.render(row) for row in page.rows]
        return rows, encode_cursor(page.next_after, mark) if page.next_after is not None else None

    async def write_part(
        self,
        part: SubResource,
        action: Action,
        asked: WriteRequest,
        row_id: int,
        *,
        named: str,
        sent: bodies.Body,
    ) -> WriteResult:
        """Set or delete a part of a row by its name; the result is the part, or status 204 without a body."""
        require_write(self._actor, self.resource, action.name)
        assert part.named is not None
        values = bodies.check_body(part.named, dict.fromkeys(part.named.model_fields, named))
        if action.body is not None:
            values = {**values, **bodies.check_body(action.body, sent)}
        answers = self.resource if part.out is None else part
        command = replace(self._command(asked, action.name, row_id, values), render=answers.render)
        return await self._do(command, answers, 204 if action.body is None else 200)

    async def create(self, asked: WriteRequest, sent: bodies.Body) -> WriteResult:
        """Create a row from a JSON body; a new secret is only in this answer."""
        resource = self.resource
        require_write(self._actor, resource, CREATE, sent)
        assert resource.create is not None
        store = self._ports.store
        values = await checked(store, resource.create, self._owned(sent), asked.claim, known=resource.known)
        once: Row = {}
        if resource.secret is not None:
            kept, once = mint(self._ports, resource.secret, values)
            values |= kept
        return await self._do(self._command(asked, CREATE, None, values), resource, 201, once)

    def _owned(self, sent: bodies.Body) -> bodies.Body:
        """Return the body of a new row, with the caller's organization or tenant as default owner."""
        create = self.resource.create
        for name, within in ((OWNER, self._actor.organization_id), (TENANT, self._actor.tenant_id)):
            owner = create.model_fields.get(name) if create is not None else None
            if within is not None and owner is not None and owner.is_required() and name not in sent:
                sent = {**sent, name: within}
        return sent

    async def take(self, asked: WriteRequest, values: Row, answers: Resource) -> WriteResult:
        """Create many rows at once; the result has the form of the model of `answers`, a resource."""
        require_write(self._actor, self.resource, CREATE)
        return await self._do(self._command(asked, CREATE, None, values, answers), answers, 200)

    async def change(self, asked: WriteRequest, row_id: int, sent: bodies.Body) -> WriteResult:
        """Change the fields of a row that were sent, and keep the others."""
        resource = self.resource
        require_write(self._actor, resource, resource.patch_verb, sent)
        assert resource.patch is not None
        values = bodies.check_body(resource.patch, sent, known=resource.known)
        return await self._do(self._command(asked, resource.patch_verb, row_id, values), resource, 200)

    async def delete(self, asked: WriteRequest, row_id: int) -> WriteResult:
        """Delete a row; the result's status is 204 once this is applied."""
        resource = self.resource
        require_write(self._actor, resource, DELETE)
        if resource.settle_first is not None:
            first = await self._do(self._command(asked, resource.settle_first, row_id), resource, 200)
            if first.status != 200:
                return first
        return await self._do(self._command(asked, DELETE, row_id), resource, 204)

    async def act(self, action: Action, asked: WriteRequest, row_id: int, sent: bodies.Body) -> WriteResult:
        """Run an action of the resource; return the row, or the tenant's quota."""
        require_write(self._actor, self.resource, action.name)
        values: Row = {}
        if action.body is not None:
            values = await checked(self._ports.store, action.body, sent, asked.claim)
        elif sent:
            raise Unprocessable(errors=tuple((name, "unknown field") for name in sent))
        answers = RESOURCES["tenant-quotas"] if action.quota else self.resource
        if action.settles:
            row = await self._ports.store.get(self.resource.name, row_id)
            # A document that is final already is refused, or answered again, at once.
            if row["status"] == "draft":
                await self._ports.account_closing.close(int(str(row["organization_id"])))
        once: Row = {}
        if action.mints and self.resource.secret is not None:
            kept, once = mint(self._ports, self.resource.secret, values)
            values = {**values, **kept}
        command = self._command(asked, action.name, row_id, values, answers)
        return await self._do(command, answers, 200, once)

    def _command(
        self,
        asked: WriteRequest,
        verb: str,
        row_id: int | None,
        values: Row | None = None,
        answers: Resource | None = None,
    ) -> Command:
        """Return the command for a request: `verb` on a row with these values."""
        render = (answers or self.resource).render
        return Command(
            self.resource.name, verb, self._actor, asked.request_id, render, row_id, values or {}, asked.claim
        )

    async def _do(
        self, command: Command, answers: Resource | SubResource, status: int,
        once: Mapping[str, object] | None = None,
    ) -> WriteResult:  # fmt: skip
        """Write a command and push it to Redis, or return its stored reply; 202 if Redis is away."""
        store = self._ports.store
        done = await write_closed(self._ports, lambda closed: store.write(replace(command, closed=closed)))
        if isinstance(done, StoredReply):
            made = command.verb == "create"
            if done.status == Conflict.status:
                raise Conflict(str(done.body["detail"]))
            return WriteResult(done.status or status, done.body, made=made, replayed=True)
        try:
            if not await push(self._ports, done.intents):
                status = 202
        except Conflict as refused:
            await self._keep(command, refused.status, {"detail": refused.message})
            raise
        if status == 204:
            return WriteResult(204)
        content = await self._render(answers, done.row)
        await self._keep(command, status, content)
        return WriteResult(status, {**content, **(once or {})}, made=command.verb == "create")

    async def _keep(self, command: Command, status: int, content: Row) -> None:
        if command.claim is not None:
            await finish(self._ports, command.claim, status, content, command.request_id)

    async def _render(self, resource: Resource | SubResource, row: Row) -> Row:
        [row] = await live.overlay(self._ports, resource.live, [row])
        return resource.render(row)
