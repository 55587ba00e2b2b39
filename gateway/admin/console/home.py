"""The common parts of all pages: operations, templates, sessions, and errors as pages.

`reading` and `writing` wrap the handler of a page: they require a session, the form token, and the role for a
write. The `ConsoleShell` passed to a handler has the rights of its caller.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from importlib.resources import files
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

from aiohttp import web
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from multidict import MultiMapping

from gateway.admin import credentials
from gateway.admin.console import formatting
from gateway.admin.console.forms import EXAMPLES, hint_of
from gateway.admin.console.screens import menu
from gateway.admin.explanation import REFUSALS
from gateway.admin.http import bodies, callers
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.requests import require_write
from gateway.admin.live import push
from gateway.admin.operations import Operations, WriteRequest
from gateway.admin.ports import NOBODY, AdminPorts
from gateway.admin.resources.form_fields import words
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import Endpoint
from gateway.core.accounts.administration import (
    KEY_HOLDER,
    Actor,
    Claim,
    Command,
    CommittedWrite,
    ConsoleSession,
    Query,
    Row,
    refused_write,
)
from gateway.core.accounts.window_words import render_window
from gateway.core.alerts.events.tenants import BLOCKED_BY
from gateway.core.credentials import Peppers
from gateway.core.issuers import LIFE_MAX, SUBJECT_CLAIM, VOUCHED, Arrival, Person, PersonIdentity
from gateway.core.text import visible
from gateway.errors import (
    AdminRefusal,
    Forbidden,
    Forged,
    IssuerUnavailable,
    NotFound,
    SignInRefused,
    StoreUnavailable,
    TollkeeperError,
    Unauthorized,
    UnsupportedEncoding,
)
from gateway.feature import features

# Templates and static files: the only place that uses Jinja.
#
# Everything on a page is autoescaped, and invisible characters are escaped too; nothing is ever marked as
# safe.

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
IMMUTABLE = "public, max-age=31536000, immutable"


class Assets:
    """The static files, at an address that changes with their content."""

    def __init__(self) -> None:
        folder = files("gateway.admin.console") / "static"
        self._files = {
            entry.name: entry.read_bytes()
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
            if entry.name.rpartition(".")[2] in TYPES
        }
        mark = sha256()
        for name, body in self._files.items():
            mark.update(name.encode() + b"\0" + body)
        self.mark = mark.hexdigest()[:12]

    def address(self, name: str) -> str:
        assert name in self._files, name
        return f"/static/{self.mark}/{name}"

    async def serve(self, request: web.Request) -> web.Response:
        """`GET /static/<mark>/<name>`: browsers cache it for ever; its address changes with its content."""
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        kept = IMMUTABLE if request.match_info["mark"] == self.mark else "no-store"
        return web.Response(
            body=self._files[name],
            content_type=TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers={"Cache-Control": kept},
        )


class Pages:
    """Renders templates as answers."""

    def __init__(self, assets: Assets, *, version: str) -> None:
        packages = (f"gateway.features.{feature.name}" for feature in features() if feature.has_templates)
        self._environment = Environment(
            loader=ChoiceLoader([PackageLoader(package) for package in ("gateway.admin.console", *packages)]),
            autoescape=select_autoescape(default=True, default_for_string=True),
            finalize=_displayed_form,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        actions = [action for resource in RESOURCES.values() for action in resource.actions]
        parts = [part for resource in RESOURCES.values() for part in resource.parts]
        actions += [action for part in parts for _, action in part.writes]
        done = {action.name: action.done for action in actions if action.done}
        self._environment.globals.update(
            asset=assets.address, version=version, examples=EXAMPLES, said_of_actions=done, found=FOUND,
            blocked_by=BLOCKED_BY,
        )  # fmt: skip
        self._environment.filters.update(
            number=formatting.number, short=formatting.short, money=formatting.money,
            moment=formatting.moment, day=formatting.day, money_parts=formatting.money_parts,
            about=formatting.round_money, plain=formatting.plain, minute=formatting.minute,
            span=formatting.time_span, limits=formatting.limits_in_words, document=formatting.document,
            words=words, label=formatting.label_of, tone=formatting.status_tone, fact=formatting.fact_of,
            limit_of=formatting.limit_text, per=render_window, window=formatting.window_title,
            resets=formatting.resets_text, carried=formatting.carried_text, outcome=formatting.outcome_of, hint=hint_of,
            reason=lambda name: REFUSALS.get(name, ""),
        )  # fmt: skip

    def answer(self, template: str | Sequence[str], status: int = 200, **facts: Any) -> web.Response:
        """Render a template, or the first existing one of several, as an answer."""
        names = [template] if isinstance(template, str) else list(template)
        text = self._environment.select_template(names).render(**facts)
        return web.Response(
            status=status,
            text=text,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": CSP},
        )


def _displayed_form(value: object) -> object:
    """Return the displayed form of a template's value; safe markup is unchanged."""
    return visible(value) if type(value) is str else value


# Values queried every few seconds, for any number of viewers.
#
# Viewers get the last result; only the first one waits, for a short time.

T = TypeVar("T")


class CachedAnswer(Generic[T]):
    """A cached result of the store, queried again on demand if it is older than `fresh_s` seconds."""

    def __init__(
        self, ask: Callable[[], Awaitable[T]], clock: Callable[[], float], *, fresh_s: float, wait_s: float
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._fresh_s = fresh_s
        self._wait_s = wait_s
        self._asked_at = float("-inf")
        self._found: T | None = None
        self._asking: asyncio.Task[None] | None = None

    async def now(self) -> T | None:
        """Return the latest result; start a new query if that is older than `fresh_s` seconds.

        None if there is no result yet, or none arrives in time.
        """
        if self._clock() - self._asked_at >= self._fresh_s and (self._asking is None or self._asking.done()):
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._look())
        if self._found is None and self._asking is not None:
            await asyncio.wait([self._asking], timeout=self._wait_s)
        return self._found

    async def _look(self) -> None:
        try:
            self._found = await self._ask()
        except StoreUnavailable:
            self._found = None


# Sessions: a random cookie that identifies the session, and a token that proves that a form is our own.
#
# The store has only the digests of the cookie and of the token with which the person signed in. Each request
# looks the token up again, so a session ends with its token.

COOKIE = "tollkeeper_session"
SESSION_S = int(LIFE_MAX.total_seconds())
# For people signed in by a provider; each confirmation by the provider extends it by this time.
SESSION_ELSEWHERE_S = int(VOUCHED.total_seconds())
SESSION_BYTES = 32
# Whether browsers use TLS for the console, regardless of a proxy's header.
OVER_TLS = web.AppKey("over_tls", bool)

_NOBODYS = "You are known as {}, and nobody has given you access to this console. Ask an administrator."
_SESSION = re.compile(r"[\w-]{43}", re.ASCII)
_KEY = re.compile(rf"{credentials.API_KEY}[{credentials.ALPHABET}]{{{credentials.RANDOM_CHARS}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SignedInPerson:
    """The session of a signed-in person; `form_token` is the token in the forms of this session.

    `id_token` is the sealed ID token for signing out at the provider; "" for people without a provider.
    """

    actor: Actor
    session_id: int
    form_token: str = field(repr=False)
    id_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """A new session: the value of its cookie, and its life in seconds."""

    cookie: str = field(repr=False)
    seconds: int


class Sessions:
    def __init__(self, ports: AdminPorts) -> None:
        self._ports = ports
        self._asking: set[asyncio.Task[None]] = set()

    async def begin(self, request: web.Request, token: str) -> SessionCookie:
        """Create a session for the holder of an admin token or API key; raise `Unauthorized` otherwise."""
        known = callers.known_key if _KEY.fullmatch(token) else callers.known_token
        actor, digest = await known(self._ports, token)
        await callers.take_place(request, actor.organization_id)
        name = secrets.token_urlsafe(SESSION_BYTES)
        return await self._begin(request, actor, SESSION_S, {"token_digest": digest}, name)

    async def begin_elsewhere(self, request: web.Request, arrival: Arrival) -> SessionCookie:
        """Create a session for a person signed in by a provider.

        Raise `SignInRefused` if no admin token stands for the person.
        """
        person, sign_ins = arrival.person, self._ports.sign_ins
        assert person is not None
        assert sign_ins is not None
        known = await callers.known_person(self._ports, person)
        if known is None:
            nobody = SignInRefused(_NOBODYS.format(person.who.name))
            nobody.failure = SUBJECT_CLAIM
            raise nobody
        actor, digest = known
        await callers.take_place(request, actor.organization_id)
        who = person.who
        values: dict[str, object] = {
            "token_digest": digest,
            "issuer": who.issuer,
            "identity": who.identity,
            "person": who.name,
        }
        if actor.organization_id is not None:
            values |= {"user": await _user_of(self._ports, actor), "groups": person.groups}
        name = secrets.token_urlsafe(SESSION_BYTES)
        if arrival.id_token:
            values["id_token"] = sign_ins.seal_id_token(arrival.id_token, name)
        if arrival.renewal:
            values["renewal"] = sign_ins.seal(arrival.renewal, name)
        begun = await self._begin(request, actor, SESSION_ELSEWHERE_S, values, name)
        # The session is extended by each confirmation of the provider, so the cookie must last for the
        # longest life.
        return replace(begun, seconds=SESSION_S) if arrival.renewal else begun

    async def _begin(
        self, request: web.Request, actor: Actor, seconds: int, values: Mapping[str, object], name: str
    ) -> SessionCookie:
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        kept = {
            **values,
            "organization_id": actor.organization_id,
            "digest": self._digest(name),
            "expires_at": ends,
        }
        done = await self._ports.store.write(
            Command("console-sessions", "create", _begins(actor), request[REQUEST_ID], _public, None, kept)
        )
        assert isinstance(done, CommittedWrite)  # no idempotency key is claimed
        if done.intents:
            await push(self._ports, done.intents)
        return SessionCookie(name, seconds)

    async def signed_in(self, request: web.Request, *, by_key: bool = False) -> SignedInPerson:
        """Return the signed-in person of a request; raise `Unauthorized` if nobody is signed in.

        Raise `Forbidden` for a person signed in with an API key, unless the page allows it (`by_key`).
        """
        name = request.cookies.get(cookie_of(request), "")
        if not _SESSION.fullmatch(name):
            raise Unauthorized
        session = await self._ports.store.console_session(self._digest(name))
        if session is None:
            raise Unauthorized
        actor = await callers.actor_of_digest(self._ports, session.token_digest)
        await callers.take_place(request, actor.organization_id)
        if actor.role == KEY_HOLDER and not by_key:
            raise Forbidden("Who signs in with an API key sees the page of that key alone.")
        actor = replace(actor, person=session.person)
        if session.is_due:
            await self._ask_again(request, session, actor, name)
        form_token = hmac.digest(name.encode(), b"form", "sha256").hex()
        return SignedInPerson(actor, session.id, form_token, session.id_token or "")

    async def end(self, request: web.Request, signed: SignedInPerson) -> None:
        await self._end(request, signed.actor, signed.session_id)

    async def _end(self, request: web.Request, actor: Actor, session_id: int) -> None:
        await self._ports.store.write(
            Command("console-sessions", "end", _begins(actor), request[REQUEST_ID], _public, session_id)
        )

    async def _ask_again(
        self, request: web.Request, session: ConsoleSession, actor: Actor, name: str
    ) -> None:
        """Check with the provider whether the person may still sign in.

        If not, end the session and raise `Unauthorized`. One request checks, others proceed. If the provider
        does not answer, the session just expires in time.
        """
        if not await self._ports.store.ask_of_session(session.id):
            return
        # A refresh token may work only once: its successor must be stored even if the caller disconnects.
        asking = asyncio.create_task(self._renew(request, session, actor, name))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        await asyncio.shield(asking)

    async def _renew(self, request: web.Request, session: ConsoleSession, actor: Actor, name: str) -> None:
        try:
            arrival = await self._read_arrival(session, name)
        except IssuerUnavailable:
            return
        except SignInRefused as error:
            await self._end(request, actor, session.id)
            raise Unauthorized from error
        assert self._ports.sign_ins is not None
        renewal = self._ports.sign_ins.seal(arrival.renewal, name)
        # Without an ID token the person's current groups are unknown, so only an ID token extends the
        # session.
        await self._ports.store.keep_renewal(session.id, renewal, vouched=arrival.person is not None)

    async def _read_arrival(self, session: ConsoleSession, name: str) -> Arrival:
        """Return the provider's answer on the signed-in person; `SignInRefused` if it names another one."""
        sign_ins = self._ports.sign_ins
        if sign_ins is None or session.person is None or session.renewal is None:
            raise SignInRefused
        arrival = await sign_ins.renew(session.person.issuer, session.renewal, name)
        same = is_same(self._ports.peppers, session.person, session.token_digest, arrival.person)
        if arrival.person is not None and not same:
            raise SignInRefused
        return arrival

    async def of_cookie(self, request: web.Request) -> tuple[ConsoleSession | None, str]:
        """Return a request's session, if there is one, and the cookie's value, which unseals its tokens."""
        name = request.cookies.get(cookie_of(request), "")
        return await self._ports.store.console_session(self._digest(name)), name

    def _digest(self, name: str) -> str:
        return self._ports.peppers.digest(f"session {name}")


def is_same(peppers: Peppers, who: PersonIdentity | None, token_digest: str, person: Person | None) -> bool:
    """Return whether `person`, named by a provider, is still `who`, with the same admin token."""
    if person is None or not person.who.is_who(who):
        return False
    return token_digest in (digest for known_as in person.known_as for digest in peppers.digests(known_as))


async def _user_of(ports: AdminPorts, actor: Actor) -> str:
    """Return the user that keys of a signed-in person have: the one of their token, or by their name."""
    if actor.user_id is not None:
        return str((await ports.store.get("users", actor.user_id))["external_id"])
    assert actor.person is not None
    return actor.person.name


def _begins(actor: Actor) -> Actor:
    """Return the actor for creating and ending sessions: the organization's, without tenant and key."""
    return replace(actor, tenant_id=None, api_key_id=None)


def set_cookie(request: web.Request, response: web.StreamResponse, session: SessionCookie) -> None:
    """Set the session's cookie, which scripts cannot read and other sites cannot send."""
    response.set_cookie(
        cookie_of(request), session.cookie, max_age=session.seconds, path="/", httponly=True,
        samesite="Strict", secure=is_secure(request),
    )  # fmt: skip


def drop_cookie(request: web.Request, response: web.Response) -> None:
    response.del_cookie(cookie_of(request), path="/", secure=is_secure(request))


def cookie_of(request: web.Request) -> str:
    """Return the cookie's name; with `__Host-` over TLS, no other host can set it (RFC 6265bis, 4.1.3.2)."""
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE


def is_secure(request: web.Request) -> bool:
    """Return whether the browser uses TLS to us or our proxy, by the proxy's header or the configuration."""
    is_https = request.headers.get("X-Forwarded-Proto", "") == "https"
    return request.secure or is_https or request.app.get(OVER_TLS, False)


def require_own_origin(request: web.Request) -> None:
    """Raise `Forged` if another site sent the form, by the headers that browsers send."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        if site != "same-origin":
            raise Forged
        return
    origin = request.headers.get("Origin", "")
    if not origin or urlsplit(origin).netloc.lower() != request.host.lower():
        raise Forged


def require_form_token(signed: SignedInPerson, posted: Mapping[str, object]) -> None:
    sent = posted.get("form_token")
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), signed.form_token.encode()):
        raise Forged


def _public(row: Row) -> Row:
    shown = {name: row[name] for name in ("issuer", "identity", "person") if row.get(name) is not None}
    return {**shown, "expires_at": str(row["expires_at"])} if "expires_at" in row else {}


FORM = "application/x-www-form-urlencoded"
THEME_COOKIE = "tollkeeper_theme"
# Maximum of choices of a list; beyond it, a field for the id is shown.
CHOICES_MAX = 200
# Shorter forms of rows of any length.
SHORT = {"invoices": "invoice-heads"}
# Resources that fields may refer to by name: searched by words, or by parts of names.
SEARCHED = frozenset({"organizations", "tenants"})
FOUND = SEARCHED | {
    "api-keys", "users", "services", "token-plans", "subscription-plans", "business-models", "invoices",
    "webhooks",
}  # fmt: skip
LISTED = frozenset({"services", "business-models", "token-plans", "subscription-plans"})

Posted = MultiMapping[Any]
Reading = Callable[["ConsoleShell", web.Request, SignedInPerson], Awaitable[web.StreamResponse]]
Writing = Callable[["ConsoleShell", web.Request, SignedInPerson, Posted], Awaitable[web.StreamResponse]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Choices = dict[str, list[tuple[str, str]]]


class ConsoleShell:
    """The common operations of the console's pages, with the rights of one actor."""

    def __init__(self, ports: AdminPorts, pages: Pages, sessions: Sessions) -> None:
        self.ports = ports
        self.sessions = sessions
        self.operations = {
            name: Operations(ports, resource, read=SHORT.get(name)) for name, resource in RESOURCES.items()
        }
        self._pages = pages

    def of(self, actor: Actor) -> ConsoleShell:
        """Return a shell with the rights of an actor."""
        return ConsoleShell(self.ports.of(actor), self._pages, self.sessions)

    @property
    def whole(self) -> ConsoleShell:
        """The shell of the person's whole organization, for shared facts such as its currency."""
        actor = self.ports.actor
        return self if actor.tenant_id is None else self.of(replace(actor, tenant_id=None, api_key_id=None))

    def reading(self, page: Reading, *, by_key: bool = False) -> Handler:
        """Return the handler of a page for signed-in people; with `by_key`, also with an API key."""

        async def handle(request: web.Request) -> web.StreamResponse:
            signed = None
            try:
                signed = await self.sessions.signed_in(request, by_key=by_key)
                return await page(self.of(signed.actor), request, signed)
            except TollkeeperError as error:
                return self.refused(request, signed, error)

        return handle

    def writing(self, page: Writing, answered: Endpoint, verb: str) -> Handler:
        """Return the handler of a form from our own page, for actors who may use a verb of `answered`."""

        async def posted(
            desk: ConsoleShell, request: web.Request, signed: SignedInPerson, form: Posted
        ) -> web.StreamResponse:
            require_write(signed.actor, answered, verb)
            return await page(desk, request, signed, form)

        return self.asking(posted)

    def asking(self, page: Writing, *, by_key: bool = False) -> Handler:
        """Return the handler of a form that must come from our own page."""

        async def posted(
            desk: ConsoleShell, request: web.Request, signed: SignedInPerson
        ) -> web.StreamResponse:
            form = await read_form(request)
            require_form_token(signed, form)
            return await page(desk, request, signed, form)

        return self.reading(posted, by_key=by_key)

    def answer(
        self,
        request: web.Request,
        signed: SignedInPerson | None,
        template: str | Sequence[str],
        status: int = 200,
        **facts: Any,
    ) -> web.Response:
        return self._pages.answer(
            template,
            status,
            path=request.path,
            theme=theme if (theme := request.cookies.get(THEME_COOKIE, "")) in {"light", "dark"} else "",
            signed=signed,
            may=partial(_may, signed.actor if signed is not None else NOBODY),
            form_token=signed.form_token if signed is not None else "",
            menu=menu(signed.actor, self.ports.off) if signed is not None else {},
            here=request.path.strip("/").split("/")[0] or "overview",
            done=request.query.get("done", ""),
            later=request.query.get("later") == "1",
            **facts,
        )

    def refused(
        self, request: web.Request, signed: SignedInPerson | None, error: TollkeeperError
    ) -> web.StreamResponse:
        """Return the page of an error; without a session, a redirect to the sign-in page."""
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

    def make_write(
        self, request: web.Request, signed: SignedInPerson, posted: Posted, sent: bodies.Body | None = None
    ) -> WriteRequest:
        """Return the write request of a form; the form's key makes a repeated submission take effect once."""
        once = posted.get("once")
        claim = None
        if sent is not None and isinstance(once, str) and once.isalnum() and len(once) == 32:
            key, digest = f"console:{once}", bodies.body_digest(sent)
            claim = Claim(signed.actor.claims_as, key, request.method, request.path, digest)
        return WriteRequest(request[REQUEST_ID], claim)

    async def names(self, wanted: Mapping[str, set[int]]) -> dict[tuple[str, int], str]:
        """Return the names of rows by (resource, id)."""
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
        wanted = sorted(resources & LISTED)
        lists = await asyncio.gather(*(self._short_list(name) for name in wanted))
        return {name: rows for name, rows in zip(wanted, lists, strict=True) if rows is not None}

    async def tags(self, organization_id: int) -> Sequence[str]:
        """Return the tags that an organization declares; none if the reader is of another one."""
        own = self.ports.actor.organization_id
        if own not in {None, organization_id}:
            return []
        try:
            names: Any = (await self.whole.ports.store.get("organizations", organization_id))["tags"]
        except NotFound:
            return []
        return list(names)

    async def _short_list(self, name: str) -> list[tuple[str, str]] | None:
        rows, more = await self.operations[name].list(query(limit=CHOICES_MAX))
        return [(str(row["id"]), str(row["name"])) for row in rows] if more is None else None


def _may(actor: Actor, name: str, verb: str) -> bool:
    return refused_write(actor, name, RESOURCES[name].access, verb) is None


def query(limit: int, *, newest_first: bool = False, **filters: object) -> Query:
    """Return a query for the first rows of a list; the filters must be valid."""
    return Query(filters, None, None, None, limit, newest_first)


async def read_form(request: web.Request) -> Posted:
    require_own_origin(request)
    if request.content_type != FORM or (request.charset or "utf-8").lower() != "utf-8":
        raise UnsupportedEncoding
    try:
        return await request.post()
    except UnicodeDecodeError as error:
        raise AdminRefusal("The form is not valid UTF-8 text.") from error


def see(address: str) -> web.Response:
    """Return a redirect (303) for the browser after a submitted form."""
    return web.Response(status=303, headers={"Location": address})
