"""Who is signed in: a cookie that only names a session, and proof that a form came from a page of ours.

The cookie is random; the store keeps its digest and the digest of the token that was shown.
Each request looks the token up again, so a session ends with its token.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from aiohttp import web

from gateway.admin.http import auth
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Actor, Command, ConsoleSession, Row
from gateway.core.issuers.sign_in import LIFE_MAX, VOUCHED, Arrival, Person
from gateway.core.issuers.signed_token import SUBJECT
from gateway.errors import Forged, IssuerUnavailable, SignInRefused, Unauthorized

COOKIE = "tollkeeper_session"
SESSION_S = int(LIFE_MAX.total_seconds())
# Of whom a provider named; as often as it vouches for them it lasts as long again.
SESSION_ELSEWHERE_S = int(VOUCHED.total_seconds())
SESSION_BYTES = 32
# Whether browsers find the console over TLS, whatever a proxy says of a single request.
OVER_TLS = web.AppKey("over_tls", bool)

_NOBODYS = "You are known as {}, and nobody has given you access to this console. Ask whoever administers it."
_SESSION = re.compile(r"[\w-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Signed:
    """Who is signed in; `form_token` is what the forms of this session carry.

    `id_token` is what a provider is told when they sign out, sealed; empty for who came by none.
    """

    actor: Actor
    session_id: int
    form_token: str = field(repr=False)
    id_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Session:
    """A new session: what its cookie holds, and how long it lasts."""

    cookie: str = field(repr=False)
    seconds: int


class Sessions:
    """Begins, finds and ends sessions."""

    def __init__(self, ports: AdminPorts) -> None:
        self._ports = ports
        self._asking: set[asyncio.Task[None]] = set()

    async def begin(self, request: web.Request, token: str) -> Session:
        """Begin a session for who holds the token; `Unauthorized` if nobody does."""
        actor, digest = await auth.known_token(self._ports, token)
        await auth.take_place(request, actor.organization_id)
        name = secrets.token_urlsafe(SESSION_BYTES)
        return await self._begin(request, actor, SESSION_S, {"token_digest": digest}, name)

    async def begin_elsewhere(self, request: web.Request, arrival: Arrival) -> Session:
        """Begin a session for whom a provider named; `SignInRefused` if no admin token stands for them."""
        person, sign_ins = arrival.person, self._ports.sign_ins
        assert person is not None
        assert sign_ins is not None
        found = await auth.known_person(self._ports, person)
        if found is None:
            nobody = SignInRefused(_NOBODYS.format(person.who.name))
            nobody.failure = SUBJECT
            raise nobody
        actor, digest = found
        await auth.take_place(request, actor.organization_id)
        who = person.who
        values = {
            "token_digest": digest,
            "issuer": who.issuer,
            "identity": who.identity,
            "person": who.name,
        }
        name = secrets.token_urlsafe(SESSION_BYTES)
        if arrival.id_token:
            values["id_token"] = sign_ins.seal_id_token(arrival.id_token, name)
        if arrival.renewal:
            values["renewal"] = sign_ins.seal(arrival.renewal, name)
        begun = await self._begin(request, actor, SESSION_ELSEWHERE_S, values, name)
        # Its end moves on as often as the provider vouches for the person: the cookie must not end before.
        return replace(begun, seconds=SESSION_S) if arrival.renewal else begun

    async def _begin(
        self, request: web.Request, actor: Actor, seconds: int, values: Mapping[str, object], name: str
    ) -> Session:
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        kept = {
            **values,
            "organization_id": actor.organization_id,
            "digest": self._digest(name),
            "expires_at": ends,
        }
        await self._ports.store.write(
            Command("console-sessions", "create", actor, request[REQUEST_ID], _public, None, kept)
        )
        return Session(name, seconds)

    async def signed_in(self, request: web.Request) -> Signed:
        """Who sent the request; `Unauthorized` if nobody is signed in."""
        name = request.cookies.get(cookie_of(request), "")
        if not _SESSION.fullmatch(name):
            raise Unauthorized
        session = await self._ports.store.console_session(self._digest(name))
        if session is None:
            raise Unauthorized
        actor = await auth.actor_of_digest(self._ports, session.token_digest)
        await auth.take_place(request, actor.organization_id)
        actor = replace(actor, person=session.person)
        if session.is_due:
            await self._ask_again(request, session, actor, name)
        form_token = hmac.digest(name.encode(), b"form", "sha256").hex()
        return Signed(actor, session.id, form_token, session.id_token or "")

    async def end(self, request: web.Request, signed: Signed) -> None:
        """End a session."""
        await self._end(request, signed.actor, signed.session_id)

    async def _end(self, request: web.Request, actor: Actor, session_id: int) -> None:
        await self._ports.store.write(
            Command("console-sessions", "end", actor, request[REQUEST_ID], _public, session_id)
        )

    async def _ask_again(
        self, request: web.Request, session: ConsoleSession, actor: Actor, name: str
    ) -> None:
        """Ask the provider whether a person still may come in; `Unauthorized`, and the end, where not.

        One request does, and others go on meanwhile. While nobody answers, the session runs out by itself.
        """
        if not await self._ports.store.ask_of_session(session.id):
            return
        # What is asked with may be good once: who goes away meanwhile must not lose what comes in its place.
        asking = asyncio.create_task(self._renew(request, session, actor, name))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        await asyncio.shield(asking)

    async def _renew(self, request: web.Request, session: ConsoleSession, actor: Actor, name: str) -> None:
        try:
            arrival = await self._asked(session, name)
        except IssuerUnavailable:
            return
        except SignInRefused as error:
            await self._end(request, actor, session.id)
            raise Unauthorized from error
        assert self._ports.sign_ins is not None
        renewal = self._ports.sign_ins.seal(arrival.renewal, name)
        # Tokens alone do not say what groups a person is in now: only an ID token lets a session go on.
        await self._ports.store.keep_renewal(session.id, renewal, vouched=arrival.person is not None)

    async def _asked(self, session: ConsoleSession, name: str) -> Arrival:
        """What the provider says of who is signed in; `SignInRefused` where that is not for them."""
        sign_ins = self._ports.sign_ins
        if sign_ins is None or session.person is None or session.renewal is None:
            raise SignInRefused
        arrival = await sign_ins.renew(session.person.issuer, session.renewal, name)
        if arrival.person is not None and not self._is_same(session, arrival.person):
            raise SignInRefused
        return arrival

    def _is_same(self, session: ConsoleSession, person: Person) -> bool:
        """Whether it is who signed in, and who still has what they came in by."""
        digests = (one for known_as in person.known_as for one in self._ports.peppers.digests(known_as))
        return person.who.is_who(session.person) and session.token_digest in digests

    def _digest(self, name: str) -> str:
        return self._ports.peppers.digest(f"session {name}")


def set_cookie(request: web.Request, response: web.StreamResponse, session: Session) -> None:
    """Hand the session's name to the browser: no script reads it, no other site sends it."""
    response.set_cookie(
        cookie_of(request), session.cookie, max_age=session.seconds, path="/", httponly=True,
        samesite="Strict", secure=is_secure(request),
    )  # fmt: skip


def drop_cookie(request: web.Request, response: web.Response) -> None:
    """Have the browser forget the session."""
    response.del_cookie(cookie_of(request), path="/", secure=is_secure(request))


def cookie_of(request: web.Request) -> str:
    """The cookie's name: behind TLS one that no other host of the domain can set (RFC 6265bis, 4.1.3.2)."""
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE


def is_secure(request: web.Request) -> bool:
    """Whether the browser speaks TLS, to us or to the proxy before us: as it says, or as is configured."""
    said = request.headers.get("X-Forwarded-Proto", "") == "https"
    return request.secure or said or request.app.get(OVER_TLS, False)


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
    said = {name: row[name] for name in ("issuer", "identity", "person") if row.get(name) is not None}
    return {**said, "expires_at": str(row["expires_at"])} if "expires_at" in row else {}
