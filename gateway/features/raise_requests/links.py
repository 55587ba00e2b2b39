"""Links in webhook messages by which the receiver decides a raise request.

A link names the request, the webhook and its expiry, and is signed under the pepper together with the
webhook's URL, so it is valid for nothing else. It has the rights of the webhook's owner, and ends if the
webhook is disabled, deleted or gets another URL. Opening it changes nothing, because mail servers open links
too.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiohttp import web

from gateway.admin.console.home import Assets, ConsoleShell, Pages, Sessions, read_form
from gateway.admin.console.raises import raise_figures
from gateway.admin.http.callers import slow_down
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.operations import Operations, WriteRequest
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import BILLING, Actor, Row
from gateway.core.credentials import is_among
from gateway.errors import NotFound, TollkeeperError
from gateway.features.raise_requests.signed import PAGE, signed

if TYPE_CHECKING:
    from gateway.admin.ports import AdminPorts

NAME: Final = "raise-requests"
_TOKEN = re.compile(r"([1-9][0-9]{0,17})-([1-9][0-9]{0,17})-([0-9]{1,12})-([0-9a-f]{64})", re.ASCII)
_OVER = "This link is no longer good, or never was. The request is decided in the console."


def mount_links(app: web.Application, ports: AdminPorts, _: str) -> None:
    """Serve the page of a decision link, which needs no token."""
    pages = RaiseLinks(ConsoleShell(ports, Pages(Assets(), version=ports.version), Sessions(ports)))
    app.router.add_get(PAGE, pages.show)
    app.router.add_post(PAGE, pages.decide)


class RaiseLinks:
    """The page of a decision link: it shows the request, and stores the decision."""

    def __init__(self, desk: ConsoleShell) -> None:
        self._desk, self._resource = desk, RESOURCES[NAME]

    async def show(self, request: web.Request) -> web.StreamResponse:
        """`GET /raise/{token}`: the raise request, with its figures."""
        try:
            actor, row = await self._read_link(request)
            figures = await raise_figures(self._desk.ports.of(actor), row)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return self._desk.answer(request, None, "raise_link.html", row=row, figures=figures)

    async def decide(self, request: web.Request) -> web.StreamResponse:
        """`POST /raise/{token}`: the action in the field `decision`, such as approve."""
        try:
            posted = await read_form(request)
            actor, row = await self._read_link(request)
            action = next(
                (action for action in self._resource.actions if action.name == posted.get("decision")), None
            )
            if action is None:
                raise NotFound(_OVER)
            does = Operations(self._desk.ports.of(actor), self._resource)
            done = await does.act(action, WriteRequest(request[REQUEST_ID]), int(str(row["id"])), {})
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return self._desk.answer(request, None, "raise_link.html", row={**row, **done.content}, figures=())

    async def _read_link(self, request: web.Request) -> tuple[Actor, Row]:
        """Return the actor and the raise request of a decision link; `NotFound` if the link is invalid."""
        ports = self._desk.ports
        match = _TOKEN.fullmatch(request.match_info["token"])
        if match is not None and int(match[3]) >= time.time():
            with suppress(NotFound):
                webhook = await ports.store.get("webhooks", int(match[2]))
                signature = signed(match[0].rpartition("-")[0], str(webhook["url"]))
                if is_among(match[4], ports.peppers.digests(signature)) and webhook["enabled"]:
                    owner = webhook["organization_id"]
                    whose = None if owner is None else int(str(owner))
                    scope = f"webhook:{match[2]}" if whose is not None else f"staff-webhook:{match[2]}"
                    actor = Actor(scope, BILLING, organization_id=whose)
                    return actor, await ports.of(actor).store.get(NAME, int(match[1]))
        await slow_down(ports.failures, request, "unknown")
        raise NotFound(_OVER)
