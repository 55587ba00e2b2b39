"""Signing in at a provider of identities: there, and back.

Who comes back is sent by another site, so the browser keeps the session's cookie to itself for that one
request, and all it is sent on to: the way back ends on a page of ours, which goes on by itself.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable

from aiohttp import web

from gateway.admin.console.begun import BEGUN_S, Begun, read_begun
from gateway.admin.console.desk import Desk, see
from gateway.admin.console.sessions import is_secure, set_cookie
from gateway.admin.console.signing import wanted_of
from gateway.admin.http.auth import slow_down
from gateway.admin.sign_ins import SignIns
from gateway.core.failures import Failures
from gateway.errors import SignInRefused, TollkeeperError

COOKIE = "tollkeeper_signing"
_CODE = re.compile(r"[ -~]{1,4096}", re.ASCII)
_ERROR = re.compile(r"[a-z_]{1,64}", re.ASCII)
_AGAIN = "This sign-in was not begun in this browser, or more than ten minutes ago. Begin again at {}."
_USED = "This sign-in was used before. Begin again at {}."

Door = Callable[[web.Request, int, str], web.Response]


class SigningElsewhere:
    """The door of the console to people whom a provider knows. `door` shows it, with what went wrong."""

    def __init__(self, desk: Desk, sign_ins: SignIns, failures: Failures, door: Door) -> None:
        self._desk, self._sign_ins, self._failures, self._door = desk, sign_ins, failures, door

    async def leave(self, request: web.Request) -> web.StreamResponse:
        """`GET /sign-in/{provider}`: send the browser there."""
        name = request.match_info["provider"]
        begun = Begun.now(name, wanted_of(request), time.time())
        try:
            address = await self._sign_ins.address(
                name, state=begun.state, nonce=begun.nonce, challenge=begun.challenge
            )
        except TollkeeperError as error:
            return self._door(request, error.status, error.message)
        response = see(address)
        response.set_cookie(
            cookie_of(request), begun.written(self._desk.ports.peppers.digest), max_age=BEGUN_S, path="/",
            httponly=True, samesite="Lax", secure=is_secure(request),
        )  # fmt: skip
        return response

    async def come_back(self, request: web.Request) -> web.StreamResponse:
        """`GET /sign-in/{provider}/back`: begin a session for who comes back."""
        try:
            begun = await self._begun(request)
            arrival = await self._sign_ins.redeem(
                begun.provider, code=_code(request), issuer=_one(request, "iss"),
                verifier=begun.verifier, nonce=begun.nonce, address=request.remote or "",
            )  # fmt: skip
            session = await self._desk.sessions.begin_elsewhere(request, arrival)
        except SignInRefused as error:
            await slow_down(self._failures, request, error.failure)
            response: web.StreamResponse = self._door(request, error.status, error.message)
        except TollkeeperError as error:
            response = self._door(request, error.status, error.message)
        else:
            response = self._desk.answer(request, None, "signed_in.html", address=begun.address)
            set_cookie(request, response, session)
        response.del_cookie(cookie_of(request), path="/", secure=is_secure(request))
        return response

    async def _begun(self, request: web.Request) -> Begun:
        """The sign-in that a request is the answer to, used up with it.

        `SignInRefused` where it is none of this browser's, or somebody came back from it before.
        """
        written = request.cookies.get(cookie_of(request), "")
        begun = read_begun(written, self._desk.ports.peppers.digests, time.time())
        state = _one(request, "state") or ""
        if (
            begun is None
            or begun.provider != request.match_info["provider"]
            or not hmac.compare_digest(state.encode(errors="replace"), begun.state.encode())
        ):
            raise SignInRefused(_AGAIN.format(self._sign_ins.console_url))
        if not await self._desk.ports.store.use_sign_in(begun.state):
            raise SignInRefused(_USED.format(self._sign_ins.console_url))
        return begun


def cookie_of(request: web.Request) -> str:
    """The cookie's name, as that of a session."""
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE


def _code(request: web.Request) -> str:
    """The code that a provider gives; `SignInRefused` where it gives none, and says why."""
    error, code = _one(request, "error"), _one(request, "code")
    if error is not None:
        why = f": {error}" if _ERROR.fullmatch(error) else ""
        raise SignInRefused(f"The provider has not signed you in{why}.")
    if code is None or not _CODE.fullmatch(code):
        raise SignInRefused("The provider has sent no code.")
    return code


def _one(request: web.Request, name: str) -> str | None:
    """A parameter of the query; `SignInRefused` where it stands there twice."""
    said = request.query.getall(name, [])
    if len(said) > 1:
        raise SignInRefused(f"The provider's answer has {name} twice.")
    return said[0] if said else None
