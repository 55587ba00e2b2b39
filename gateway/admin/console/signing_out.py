"""Signing out: here first, then at the provider of identities.

A form may not lead to another site, so the answer to it is a page that goes on by itself.
"""

from __future__ import annotations

import hmac
import time

from aiohttp import web

from gateway.admin.console.begun import BEGUN_S, Begun, read_begun
from gateway.admin.console.desk import Desk, read_form, see
from gateway.admin.console.sessions import Signed, cookie_of, drop_cookie, is_secure, require_form_token
from gateway.errors import TollkeeperError, Unauthorized

COOKIE = "tollkeeper_leaving"
HERE, THERE = "/sign-in?done=signed-out", "/sign-in?done=signed-out-there"


class SigningOut:
    """The way out of the console."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def sign_out(self, request: web.Request) -> web.StreamResponse:
        """`POST /sign-out`."""
        response: web.Response = see(HERE)
        try:
            signed = await self._desk.sessions.signed_in(request)
            require_form_token(signed, await read_form(request))
            await self._desk.sessions.end(request, signed)
            response = await self._leave(request, signed) or response
        except Unauthorized:
            pass
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        drop_cookie(request, response)
        return response

    async def _leave(self, request: web.Request, signed: Signed) -> web.Response | None:
        """The page that goes on to the provider; None where people sign out nowhere else."""
        sign_ins, person = self._desk.ports.sign_ins, signed.actor.person
        name = sign_ins.name_of(person.issuer) if sign_ins is not None and person is not None else ""
        if sign_ins is None or not name:
            return None
        begun = Begun.now(name, "/", time.time())
        cookie = request.cookies.get(cookie_of(request), "")
        address = await sign_ins.sign_out_address(name, signed.id_token, cookie, state=begun.farewell)
        if not address:
            return None
        label = sign_ins.labels.get(name, name)
        response = self._desk.answer(request, None, "signed_out.html", address=address, label=label)
        response.set_cookie(
            _leaving(request), begun.written(self._desk.ports.peppers.digest), max_age=BEGUN_S, path="/",
            httponly=True, samesite="Lax", secure=is_secure(request),
        )  # fmt: skip
        return response

    async def come_back(self, request: web.Request) -> web.StreamResponse:
        """`GET /sign-out/{provider}/back`: it changes nothing, so whoever sends people here gains nothing."""
        begun = read_begun(
            request.cookies.get(_leaving(request), ""), self._desk.ports.peppers.digests, time.time()
        )
        state = request.query.get("state", "").encode(errors="replace")
        is_known = (
            begun is not None
            and begun.provider == request.match_info["provider"]
            and hmac.compare_digest(state, begun.farewell.encode())
        )
        response = see(THERE if is_known else "/sign-in")
        response.del_cookie(_leaving(request), path="/", secure=is_secure(request))
        return response


def _leaving(request: web.Request) -> str:
    """The cookie's name, as that of a session."""
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE
