"""The page of a link that somebody was mailed: may an organization have messages sent to them?

Who has the link needs no token. To open it changes nothing, since mail servers open links too: a button does.
"""

from __future__ import annotations

import re

from aiohttp import web

from gateway.admin.console.desk import Desk, read_form
from gateway.admin.http.auth import slow_down
from gateway.core.alerts.mail import digest_of
from gateway.core.failures import Failures
from gateway.errors import NotFound, TollkeeperError

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_OVER = "This link is no longer good, or never was. An organization can have you asked again in a day."


class Consents:
    """Asks whom a link was mailed to, and keeps what they say."""

    def __init__(self, desk: Desk, failures: Failures) -> None:
        self._desk, self._failures = desk, failures

    async def show(self, request: web.Request) -> web.StreamResponse:
        """`GET /mail/{token}`."""
        return await self._answer(request, given=None)

    async def say(self, request: web.Request) -> web.StreamResponse:
        """`POST /mail/{token}` with `consent`: yes, or no more."""
        try:
            posted = await read_form(request)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return await self._answer(request, given=posted.get("consent") == "yes")

    async def _answer(self, request: web.Request, *, given: bool | None) -> web.StreamResponse:
        store, token = self._desk.ports.store, request.match_info["token"]
        try:
            digest = digest_of(token) if _TOKEN.fullmatch(token) else ""
            if given is not None:
                await store.consent_to_mail(digest, given=given)
            asked = await store.mail_consent(digest)
            if asked is None and given is not False:
                await slow_down(self._failures, request, "unknown")
                raise NotFound(_OVER)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return self._desk.answer(request, None, "consent.html", asked=asked)
