"""Signing in and out."""

from __future__ import annotations

import re
from urllib.parse import quote

from aiohttp import web

from gateway.admin.console.desk import Desk, Posted, read_form, see
from gateway.admin.console.sessions import drop_cookie, require_form_token, set_cookie
from gateway.admin.http.auth import slow_down
from gateway.core.failures import Failures
from gateway.errors import TollkeeperError, Unauthorized

_TOKEN = re.compile(r"[!-~]{1,512}", re.ASCII)
_LOCAL = re.compile(r"/(?![/\\])[!-~]{0,1000}", re.ASCII)


class Signing:
    """The door of the console."""

    def __init__(self, desk: Desk, failures: Failures) -> None:
        self._desk = desk
        self._failures = failures

    async def show(self, request: web.Request) -> web.StreamResponse:
        """`GET /sign-in`; who is signed in already goes on."""
        try:
            await self._desk.sessions.signed_in(request)
        except Unauthorized:
            return self._door(request)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return see(_next(request))

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        """`POST /sign-in`."""
        try:
            posted = await read_form(request)
            name = await self._desk.sessions.begin(request, _token(posted))
        except Unauthorized as error:
            await slow_down(self._failures, request, error.failure)
            return self._door(request, 401, "This token is not known, or no longer valid.")
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        response = see(_next(request))
        set_cookie(request, response, name)
        return response

    async def sign_out(self, request: web.Request) -> web.StreamResponse:
        """`POST /sign-out`."""
        response = see("/sign-in?done=signed-out")
        drop_cookie(request, response)
        try:
            signed = await self._desk.sessions.signed_in(request)
            require_form_token(signed, await read_form(request))
            await self._desk.sessions.end(request, signed)
        except Unauthorized:
            return response
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return response

    def _door(self, request: web.Request, status: int = 200, message: str = "") -> web.Response:
        address = _next(request)
        action = "/sign-in" if address == "/" else f"/sign-in?next={quote(address, safe='')}"
        return self._desk.answer(request, None, "sign_in.html", status, message=message, action=action)


def _token(posted: Posted) -> str:
    token = posted.get("token", "")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token.strip()):
        raise Unauthorized
    return token.strip()


def _next(request: web.Request) -> str:
    wanted = request.query.get("next", "")
    return wanted if _LOCAL.fullmatch(wanted) else "/"
