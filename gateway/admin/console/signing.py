"""Signing in with a token, and the door at which it begins."""

from __future__ import annotations

import re
from urllib.parse import quote

from aiohttp import web

from gateway.admin.console.desk import Desk, Posted, read_form, see
from gateway.admin.console.sessions import set_cookie
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
        sign_ins = desk.ports.sign_ins
        self._providers = sign_ins.labels if sign_ins is not None else {}

    async def show(self, request: web.Request) -> web.StreamResponse:
        """`GET /sign-in`; who is signed in already goes on."""
        try:
            await self._desk.sessions.signed_in(request)
        except Unauthorized:
            return self.door(request)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return see(wanted_of(request))

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        """`POST /sign-in`."""
        try:
            posted = await read_form(request)
            session = await self._desk.sessions.begin(request, _token(posted))
        except Unauthorized as error:
            await slow_down(self._failures, request, error.failure)
            return self.door(request, 401, "This token is not known, or no longer valid.")
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        response = see(wanted_of(request))
        set_cookie(request, response, session)
        return response

    def door(self, request: web.Request, status: int = 200, message: str = "") -> web.Response:
        """The page on which people sign in, with what went wrong."""
        address = wanted_of(request)
        wanted = "" if address == "/" else f"?next={quote(address, safe='')}"
        return self._desk.answer(
            request, None, "sign_in.html", status,
            message=message, action=f"/sign-in{wanted}", wanted=wanted, providers=self._providers,
        )  # fmt: skip


def _token(posted: Posted) -> str:
    token = posted.get("token", "")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token.strip()):
        raise Unauthorized
    return token.strip()


def wanted_of(request: web.Request) -> str:
    """The page that a request wants to see once somebody is signed in: one of ours, whatever it says."""
    wanted = request.query.get("next", "")
    return wanted if _LOCAL.fullmatch(wanted) else "/"
