"""Signing in with a token or by an identity provider, and signing out."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from gateway.admin.console.home import (
    ConsoleShell,
    Posted,
    SignedInPerson,
    drop_cookie,
    is_secure,
    read_form,
    require_form_token,
    see,
    set_cookie,
)
from gateway.admin.console.home import (
    cookie_of as session_cookie_of,
)
from gateway.admin.http.callers import slow_down
from gateway.core.credentials import is_among
from gateway.core.failures import Failures
from gateway.errors import SignInRefused, TollkeeperError, Unauthorized

if TYPE_CHECKING:
    from gateway.issuers.sign_in import SignIns

_TOKEN = re.compile(r"[!-~]{1,512}", re.ASCII)
_LOCAL = re.compile(r"/(?![/\\])[!-~]{0,1000}", re.ASCII)


class SignInPages:
    def __init__(self, desk: ConsoleShell, failures: Failures) -> None:
        self._desk = desk
        self._failures = failures
        sign_ins = desk.ports.sign_ins
        self._providers = sign_ins.labels if sign_ins is not None else {}

    async def show(self, request: web.Request) -> web.StreamResponse:
        """`GET /sign-in`; people who are signed in are redirected."""
        try:
            await self._desk.sessions.signed_in(request, by_key=True)
        except Unauthorized:
            return self.door(request)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return see(wanted_of(request))

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        try:
            posted = await read_form(request)
            session = await self._desk.sessions.begin(request, _token(posted))
        except Unauthorized as error:
            await slow_down(self._failures, request, error.failure)
            return self.door(request, 401, "This token or key is not known, or no longer valid.")
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        response = see(wanted_of(request))
        set_cookie(request, response, session)
        return response

    def door(self, request: web.Request, status: int = 200, message: str = "") -> web.Response:
        """Return the sign-in page, with an error message if there is one."""
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
    """Return the local page to open after sign-in; other addresses become the start page."""
    wanted = request.query.get("next", "")
    return wanted if _LOCAL.fullmatch(wanted) else "/"


# A sign-in in progress at a provider: the contents of its cookie.
#
# Only the cookie has the sign-in's seed, so any keeper can complete it. The cookie is signed with the pepper,
# valid for minutes, and new for each sign-in. Its `state` and `nonce` go to the browser and the provider, its
# `verifier` only to the provider's token endpoint. A sign-out at the provider has a cookie of its own, and
# sends its `farewell`.

BEGUN_S = 600
SEED_BYTES = 32
_WRITTEN = re.compile(r"([\w-]{1,4000})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class PendingSignIn:
    """A sign-in in progress at a provider, and the local page to open next; `ends` is a Unix time."""

    provider: str
    address: str
    ends: int
    seed: str = field(repr=False)

    @staticmethod
    def now(provider: str, address: str, at: float) -> PendingSignIn:
        return PendingSignIn(provider, address, int(at) + BEGUN_S, secrets.token_urlsafe(SEED_BYTES))

    @property
    def state(self) -> str:
        """The state parameter, which the provider's answer to this sign-in must repeat."""
        return self._derive_secret("state")

    @property
    def farewell(self) -> str:
        """The state parameter of this sign-out, which is not valid for a sign-in."""
        return self._derive_secret("farewell")

    @property
    def nonce(self) -> str:
        """The nonce that the ID token of this sign-in must contain."""
        return self._derive_secret("nonce")

    @property
    def verifier(self) -> str:
        """The PKCE code verifier, with which only this browser can redeem the code (RFC 7636, 4.1)."""
        return self._derive_secret("verifier")

    @property
    def challenge(self) -> str:
        """The PKCE code challenge, sent in advance (RFC 7636, 4.2)."""
        return _encoded(sha256(self.verifier.encode()).digest())

    def written(self, digest: Callable[[str], str]) -> str:
        said = json.dumps([self.provider, self.address, self.ends, self.seed], separators=(",", ":"))
        text = _encoded(said.encode())
        return f"{text}.{digest(_marked(text))}"

    def _derive_secret(self, use: str) -> str:
        return _encoded(hmac.digest(self.seed.encode(), use.encode(), "sha256"))


def read_begun(written: str, digests: Callable[[str], Iterable[str]], at: float) -> PendingSignIn | None:
    """Return the pending sign-in of a cookie; None if the cookie is not ours, or has expired at `at`."""
    match = _WRITTEN.fullmatch(written)
    if match is None or not is_among(match[2], digests(_marked(match[1]))):
        return None
    text = match[1]
    begun = PendingSignIn(*json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4))))
    return begun if at < begun.ends else None


def _marked(text: str) -> str:
    """Return a text to digest for sign-in cookies: no credential begins like it, so digests never match."""
    return f"signing in {text}"


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


# Signing in at an identity provider: the redirect to it, and the return.
#
# The return is a request from another site, so the browser withholds the session's cookie from it and from
# its redirects. So it ends on a page of ours, which then opens the wanted page.

COOKIE = "tollkeeper_signing"
_CODE = re.compile(r"[ -~]{1,4096}", re.ASCII)
_ERROR = re.compile(r"[a-z_]{1,64}", re.ASCII)
_AGAIN = "This sign-in was not begun in this browser, or more than ten minutes ago. Sign in at {}."
_USED = "This sign-in was used before. Sign in at {}."

Door = Callable[[web.Request, int, str], web.Response]


class ProviderSignInPages:
    """Sign-in by identity providers; `door` renders the sign-in page with an error message."""

    def __init__(self, desk: ConsoleShell, sign_ins: SignIns, failures: Failures, door: Door) -> None:
        self._desk, self._sign_ins, self._failures, self._door = desk, sign_ins, failures, door

    async def leave(self, request: web.Request) -> web.StreamResponse:
        """`GET /sign-in/{provider}`: redirect the browser to the provider."""
        name = request.match_info["provider"]
        begun = PendingSignIn.now(name, wanted_of(request), time.time())
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
        """`GET /sign-in/{provider}/back`: create a session for the returning person."""
        try:
            begun = await self._begun(request)
            arrival = await self._sign_ins.redeem(
                begun.provider, code=_code(request), issuer=_read_parameter(request, "iss"),
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

    async def _begun(self, request: web.Request) -> PendingSignIn:
        """Return the pending sign-in that a request answers, and mark it as used.

        Raise `SignInRefused` if it belongs to another browser, or was answered before.
        """
        written = request.cookies.get(cookie_of(request), "")
        begun = read_begun(written, self._desk.ports.peppers.digests, time.time())
        state = _read_parameter(request, "state") or ""
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
    """Return the cookie's name, with the same prefix as that of a session."""
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE


def _code(request: web.Request) -> str:
    """Return the code in the provider's answer; else raise `SignInRefused` with the provider's error."""
    error, code = _read_parameter(request, "error"), _read_parameter(request, "code")
    if error is not None:
        why = f": {error}" if _ERROR.fullmatch(error) else ""
        raise SignInRefused(f"The provider has not signed you in{why}.")
    if code is None or not _CODE.fullmatch(code):
        raise SignInRefused("The provider has sent no code.")
    return code


def _read_parameter(request: web.Request, name: str) -> str | None:
    """Return a parameter of the query; raise `SignInRefused` if it is given twice."""
    values = request.query.getall(name, [])
    if len(values) > 1:
        raise SignInRefused(f"The provider's answer has {name} twice.")
    return values[0] if values else None


# Signing out: here first, then at the identity provider.
#
# A form may not redirect to another site, so its answer is a page that continues to the provider.

SIGNED_OUT_COOKIE = "tollkeeper_leaving"
HERE, THERE = "/sign-in?done=signed-out", "/sign-in?done=signed-out-there"


class SignOutPages:
    def __init__(self, desk: ConsoleShell) -> None:
        self._desk = desk

    async def sign_out(self, request: web.Request) -> web.StreamResponse:
        response: web.Response = see(HERE)
        try:
            signed = await self._desk.sessions.signed_in(request, by_key=True)
            require_form_token(signed, await read_form(request))
            await self._desk.sessions.end(request, signed)
            response = await self._leave(request, signed) or response
        except Unauthorized:
            pass
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        drop_cookie(request, response)
        return response

    async def _leave(self, request: web.Request, signed: SignedInPerson) -> web.Response | None:
        """Return the page that continues to the provider's sign-out; None if the provider has none."""
        sign_ins, person = self._desk.ports.sign_ins, signed.actor.person
        name = sign_ins.name_of(person.issuer) if sign_ins is not None and person is not None else ""
        if sign_ins is None or not name:
            return None
        begun = PendingSignIn.now(name, "/", time.time())
        cookie = request.cookies.get(session_cookie_of(request), "")
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
        """`GET /sign-out/{provider}/back`: show that the sign-out is complete; it changes nothing."""
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
    """Return the name of the sign-out's cookie, with the same prefix as that of a session."""
    return f"__Host-{SIGNED_OUT_COOKIE}" if is_secure(request) else SIGNED_OUT_COOKIE
