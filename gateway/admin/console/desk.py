"""What every page stands on: the operations, the templates, who is signed in, and errors as pages.

`reading` and `writing` wrap a page's handler: nobody unknown gets to it, no forged form, and no write of
whose role does not allow it. The desk a handler is given is its caller's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.console.render import Pages
from gateway.admin.console.screens import menu
from gateway.admin.console.sessions import Sessions, Signed, require_form_token, require_own_origin
from gateway.admin.http import body
from gateway.admin.http.auth import require_write
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.operations import Asked, Operations
from gateway.admin.ports import NOBODY, AdminPorts
from gateway.admin.resources import RESOURCES
from gateway.admin.resources.resource import Answered
from gateway.core.accounts.administration import Actor, Claim, Query
from gateway.core.accounts.roles import refused_write
from gateway.errors import AdminRefusal, TollkeeperError, Unauthorized, UnsupportedEncoding

FORM = "application/x-www-form-urlencoded"
THEME_COOKIE = "tollkeeper_theme"
# What may be chosen from a list; of more, the id is asked for.
CHOICES_MAX = 200
# Rows that may be of any length are read without what makes them so.
SHORT = {"invoices": "invoice-heads"}
LISTED = frozenset({"services", "business-models", "token-plans", "subscription-plans"})

Posted = MultiMapping[Any]
Reading = Callable[["Desk", web.Request, Signed], Awaitable[web.StreamResponse]]
Writing = Callable[["Desk", web.Request, Signed, Posted], Awaitable[web.StreamResponse]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Choices = dict[str, list[tuple[str, str]]]


class Desk:
    """The console's common ground."""

    def __init__(self, ports: AdminPorts, pages: Pages, sessions: Sessions) -> None:
        self.ports = ports
        self.sessions = sessions
        self.operations = {
            name: Operations(ports, resource, read=SHORT.get(name)) for name, resource in RESOURCES.items()
        }
        self._pages = pages

    def of(self, actor: Actor) -> Desk:
        """The desk of who is signed in: what its role and organization let it see and do."""
        return Desk(self.ports.of(actor), self._pages, self.sessions)

    def reading(self, page: Reading) -> Handler:
        """A page that is looked at."""

        async def handle(request: web.Request) -> web.StreamResponse:
            signed = None
            try:
                signed = await self.sessions.signed_in(request)
                return await page(self.of(signed.actor), request, signed)
            except TollkeeperError as error:
                return self.refused(request, signed, error)

        return handle

    def writing(self, page: Writing, answered: Answered, verb: str) -> Handler:
        """A form that changes something: sent by a page of ours, by somebody who may do that."""

        async def posted(
            desk: Desk, request: web.Request, signed: Signed, form: Posted
        ) -> web.StreamResponse:
            require_write(signed.actor, answered, verb)
            return await page(desk, request, signed, form)

        return self.asking(posted)

    def asking(self, page: Writing) -> Handler:
        """A form that was sent by a page of ours."""

        async def posted(desk: Desk, request: web.Request, signed: Signed) -> web.StreamResponse:
            form = await read_form(request)
            require_form_token(signed, form)
            return await page(desk, request, signed, form)

        return self.reading(posted)

    def answer(
        self, request: web.Request, signed: Signed | None, template: str, status: int = 200, **facts: Any
    ) -> web.Response:
        """Render a page with what every page has."""
        return self._pages.answer(
            template,
            status,
            path=request.path,
            theme=theme_of(request),
            signed=signed,
            may=partial(_may, signed.actor if signed is not None else NOBODY),
            form_token=signed.form_token if signed is not None else "",
            menu=menu(signed.actor) if signed is not None else {},
            here=request.path.strip("/").split("/")[0] or "overview",
            done=request.query.get("done", ""),
            later=request.query.get("later") == "1",
            **facts,
        )

    def refused(
        self, request: web.Request, signed: Signed | None, error: TollkeeperError
    ) -> web.StreamResponse:
        """Say an error on a page; who is not signed in is shown the door."""
        if isinstance(error, Unauthorized):
            wanted = request.path_qs if request.method == "GET" and request.path != "/" else ""
            address = f"/sign-in?next={quote(wanted, safe='')}" if wanted else "/sign-in"
            if "HX-Request" in request.headers:
                return web.Response(status=401, headers={"HX-Redirect": "/sign-in"})
            return see(address)
        errors = error.errors if isinstance(error, AdminRefusal) else ()
        response = self.answer(
            request, signed, "error.html", error.status, message=error.message, errors=errors,
            reason=error.reason, code=error.status,
        )  # fmt: skip
        if error.status in {429, 503}:
            response.headers["Retry-After"] = str(getattr(error, "retry_after_s", None) or 1)
        return response

    def asked(
        self, request: web.Request, signed: Signed, posted: Posted, sent: body.Body | None = None
    ) -> Asked:
        """Who asks for a write; a form with a body is done once, however often it is sent."""
        once = posted.get("once")
        claim = None
        if sent is not None and isinstance(once, str) and once.isalnum() and len(once) == 32:
            key, digest = f"console:{once}", body.digest(sent)
            claim = Claim(signed.actor.claims_as, key, request.method, request.path, digest)
        return Asked(request[REQUEST_ID], claim)

    async def names(self, wanted: Mapping[str, set[int]]) -> dict[tuple[str, int], str]:
        """The names of rows by (resource, id)."""
        from_store = [name for name in wanted if name in self.ports.figures.named]
        found = await asyncio.gather(
            *(self.ports.figures.names(name, sorted(wanted[name])) for name in from_store)
        )
        return {
            (resource, row_id): name
            for resource, names in zip(from_store, found, strict=True)
            for row_id, name in names.items()
        }

    async def choices(self, resources: set[str]) -> Choices:
        """What an id may refer to, where that is a short list."""
        wanted = sorted(resources & LISTED)
        found = await asyncio.gather(*(self._short_list(name) for name in wanted))
        return {name: rows for name, rows in zip(wanted, found, strict=True) if rows is not None}

    async def _short_list(self, name: str) -> list[tuple[str, str]] | None:
        rows, more = await self.operations[name].list(query(limit=CHOICES_MAX))
        return [(str(row["id"]), str(row["name"])) for row in rows] if more is None else None


def _may(actor: Actor, name: str, verb: str) -> bool:
    """Whether a page offers to do something with a resource."""
    return refused_write(actor, name, RESOURCES[name].access, verb) is None


def query(limit: int, *, newest_first: bool = False, **filters: object) -> Query:
    """The first rows of a list under filters that are known to be good."""
    return Query(filters, None, None, None, limit, newest_first)


async def read_form(request: web.Request) -> Posted:
    """Read a posted form that came from a page of ours."""
    require_own_origin(request)
    if request.content_type != FORM or (request.charset or "utf-8").lower() != "utf-8":
        raise UnsupportedEncoding
    try:
        return await request.post()
    except UnicodeDecodeError as error:
        raise AdminRefusal("The form is not valid UTF-8 text.") from error


def theme_of(request: web.Request) -> str:
    """Light, dark, or whatever the machine is set to."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    return chosen if chosen in {"light", "dark"} else ""


def see(address: str) -> web.Response:
    """Send the browser on, after a form that was taken."""
    return web.Response(status=303, headers={"Location": address})
