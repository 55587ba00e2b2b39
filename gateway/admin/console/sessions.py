"""Who is signed in: a cookie that only names a session, and proof that a form came from a page of ours.

The cookie is random; the store keeps its digest and the digest of the token that was shown.
Each request looks the token up again, so a session ends with its token.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from aiohttp import web

from gateway.admin.http import auth
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.server import IDENTIFIED
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Actor, Command, Row
from gateway.errors import Forged, Unauthorized

COOKIE = "tollkeeper_session"
SESSION_S = 12 * 3600
SESSION_BYTES = 32

_SESSION = re.compile(r"[\w-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Signed:
    """Who is signed in; `form_token` is what the forms of this session carry."""

    actor: Actor
    session_id: int
    form_token: str = field(repr=False)


class Sessions:
    """Begins, finds and ends sessions."""

    def __init__(self, ports: AdminPorts) -> None:
        self._ports = ports

    async def begin(self, request: web.Request, token: str) -> str:
        """Begin a session for who holds the token and answer its cookie; `Unauthorized` if nobody does."""
        actor, digest = await auth.known_token(self._ports, token)
        name = secrets.token_urlsafe(SESSION_BYTES)
        ends = datetime.now(UTC) + timedelta(seconds=SESSION_S)
        values = {
            "digest": self._digest(name),
            "token_digest": digest,
            "expires_at": ends,
        }
        await self._ports.store.write(
            Command("console-sessions", "create", actor, request[REQUEST_ID], _public, None, values)
        )
        return name

    async def signed_in(self, request: web.Request) -> Signed:
        """Who sent the request; `Unauthorized` if nobody is signed in."""
        name = request.cookies.get(cookie_of(request), "")
        if not _SESSION.fullmatch(name):
            raise Unauthorized
        session = await self._ports.store.console_session(self._digest(name))
        if session is None:
            raise Unauthorized
        actor = await auth.actor_of_digest(self._ports, session.token_digest)
        request[IDENTIFIED] = True
        return Signed(actor, session.id, hmac.digest(name.encode(), b"form", "sha256").hex())

    async def end(self, request: web.Request, signed: Signed) -> None:
        """End a session."""
        await self._ports.store.write(
            Command("console-sessions", "end", signed.actor, request[REQUEST_ID], _public, signed.session_id)
        )

    def _digest(self, name: str) -> str:
        return self._ports.peppers.digest(f"session {name}")


def set_cookie(request: web.Request, response: web.Response, name: str) -> None:
    """Hand the session's name to the browser: no script reads it, no other site sends it."""
    response.set_cookie(
        cookie_of(request), name, max_age=SESSION_S, path="/", httponly=True, samesite="Strict",
        secure=is_secure(request),
    )  # fmt: skip


def drop_cookie(request: web.Request, response: web.Response) -> None:
    """Have the browser forget the session."""
    response.del_cookie(cookie_of(request), path="/", secure=is_secure(request))


def cookie_of(request: web.Request) -> str:
    """The cookie's name: behind TLS one that no other host of the domain can set (RFC 6265bis, 4.1.3.2)."""
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE


def is_secure(request: web.Request) -> bool:
    """Whether the browser speaks TLS, to us or to the proxy before us."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "") == "https"


def require_own_origin(request: web.Request) -> None:
    """Refuse a form that another site sent; browsers say where a form comes from."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        if site != "same-origin":
            raise Forged
        return
    origin = request.headers.get("Origin", "")
    if not origin or urlsplit(origin).netloc.lower() != request.host.lower():
        raise Forged


def require_form_token(signed: Signed, posted: Mapping[str, object]) -> None:
    """Refuse a form that does not carry this session's token."""
    sent = posted.get("form_token")
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), signed.form_token.encode()):
        raise Forged


def _public(row: Row) -> Row:
    return {"expires_at": str(row["expires_at"])} if "expires_at" in row else {}
