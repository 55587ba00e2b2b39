"""The gateway protocol of coding agents: metadata (RFC 8414), device grant (RFC 8628), refresh, revocation.

An access token is an API key with an expiry, so calls, limits, budgets and rows treat it like any key, and no
call queries PostgreSQL. All codes and tokens are derived from a row's seed and the pepper. So a repeated
refresh, even after a crash, has the same answer, and no credential is stored.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final
from uuid import UUID, uuid4

from aiohttp import web

from gateway.admin.console.home import (
    Assets,
    ConsoleShell,
    Pages,
    Posted,
    Sessions,
    SignedInPerson,
    is_same,
    see,
)
from gateway.admin.credentials import API_KEY, SHOWN_CHARS, spelled
from gateway.admin.http.bodies import check_body
from gateway.admin.http.callers import SENDER, known_key, sent_from, slow_down, take_place
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.requests import may_write
from gateway.admin.live import push
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import ADMIN, CREATE, Actor, Command, CommittedWrite, Row
from gateway.core.credentials import is_among
from gateway.core.failures import site_of
from gateway.core.issuers import PersonIdentity
from gateway.errors import (
    Conflict,
    Forbidden,
    NotFound,
    SignInRefused,
    StoreUnavailable,
    TollkeeperError,
    Unauthorized,
)
from gateway.features.agents.origin import (
    DEVICE_PATH,
    FORM_BYTES_MAX,
    METADATA_PATH,
    REVOKE_PATH,
    SENDER_FIELD,
    SETTINGS_BYTES_MAX,
    SETTINGS_PATH,
    TELEMETRY_PATHS,
    TOKEN_PATH,
    sender_of,
)
from gateway.files import read_regular
from gateway.issuers.sign_in import opened, seal
from persistence import agents as stored

PAGE: Final = "/device"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
# Letters that spell no word and are not mistaken for each other (RFC 8628, 6.1): 34 bits, for ten minutes.
CODE_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
CODE_CHARS: Final = 8
CODE_S: Final = 600
POLL_S: Final = 5
# Stated lifetime of a key. The key is valid longer, in case PostgreSQL is unavailable at its renewal.
TOKEN_S: Final = 4 * 3600
LASTS_ON_S: Final = 1800
# An exchanged refresh token gets the same answer for a while. After that it counts as stolen.
GRACE_S: Final = 60.0
OVERLAP_S: Final = 300
# A sign-in makes a key no more often than this.
RENEWAL_S_MIN: Final = 30.0
SWEEP_S: Final = 20.0
# How often a provider is asked whether an agent's person may still sign in. At shutdown its answers are
# awaited, because a renewal secret may be valid only once.
ASKED_EACH_S: Final = 35.0
ANSWERS_S_MAX: Final = 5.0
AGENT_CHARS_MAX: Final = 120

_CODE = re.compile(rf"[{CODE_LETTERS}]{{{CODE_CHARS}}}", re.ASCII)
_DEVICE = re.compile(r"tkd_(\d{1,18})_([0-9a-f]{64})", re.ASCII)
_REFRESH = re.compile(r"tkr_(\d{1,18})_(\d{1,6})_([0-9a-f]{64})", re.ASCII)
_KEYS = "api-keys"
# The actor that ends outdated sign-ins.
_KEEPER = Actor("agents", ADMIN)
_log = logging.getLogger("tollkeeper.admin")


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Bounds of sign-ins, by default the constants of this module."""

    asking_max: int = stored.ASKING_MAX
    asking_each_max: int = stored.ASKING_EACH_MAX
    grace_s: float = GRACE_S
    renewal_s_min: float = RENEWAL_S_MIN
    sweep_s: float = SWEEP_S
    asked_each_s: float = ASKED_EACH_S


LIMITS: Final = AgentLimits()


class OAuthRefusal(Exception):  # an answer of the protocol, not a fault
    """An OAuth error answer (RFC 6749, 5.2)."""

    def __init__(self, error: str, status: int = 400) -> None:
        super().__init__(error)
        self.error, self.status = error, status


def mount_agents(
    app: web.Application,
    ports: AdminPorts,
    _: str,
    *,
    calls: str,
    console: str,
    policy: str = "",
    limits: AgentLimits = LIMITS,
) -> None:
    """Serve the sign-in of agents by the OAuth device grant, and their settings.

    `calls` is the URL that agents send calls to, `console` the URL of the console. `policy` is the path of
    the file with settings for agents, empty without such settings.
    """
    agents = Agents(ports, calls, console, limits)
    router, heard = app.router, partial(_with_client_address, ports)
    router.add_get(METADATA_PATH, heard(agents.metadata))
    for path, handler in (
        (DEVICE_PATH, agents.authorize), (TOKEN_PATH, agents.token), (REVOKE_PATH, agents.revoke),
    ):  # fmt: skip
        router.add_post(path, heard(_oauth(handler)))
    desk = ConsoleShell(ports, Pages(Assets(), version=ports.version), Sessions(ports))
    router.add_get(SETTINGS_PATH, heard(partial(agents.settings, policy)))
    for path in TELEMETRY_PATHS:
        router.add_post(path, agents.telemetry)
    router.add_get(PAGE, desk.reading(agents.show))
    router.add_post(PAGE, desk.asking(agents.decide))
    app.cleanup_ctx.append(agents.sweeping)


def _with_client_address(ports: AdminPorts, handler: Any) -> Any:
    """Wrap a handler: the request gets the client's address that a gateway states in a signed header."""

    async def answered(request: web.Request) -> web.Response:
        field = request.headers.get(SENDER_FIELD, "")
        request[SENDER] = sender_of(ports.peppers, request.path, field, time.time())
        answer: web.Response = await handler(request)
        return answer

    return answered


def _oauth(handler: Any) -> Any:
    async def answered(request: web.Request) -> web.Response:
        try:
            content = await handler(request, await _form(request))
        except OAuthRefusal as refusal:
            return web.json_response({"error": refusal.error}, status=refusal.status)
        return web.json_response(content)

    return answered


async def _form(request: web.Request) -> Mapping[str, str]:
    """Return the fields of a form; `OAuthRefusal` if one occurs twice."""
    if (request.content_length or 0) > FORM_BYTES_MAX:
        raise OAuthRefusal("invalid_request", 413)
    try:
        sent = await request.post()
    except ValueError as error:
        raise OAuthRefusal("invalid_request") from error
    form = {name: value for name, value in sent.items() if isinstance(value, str)}
    if len(form) != len(sent):
        raise OAuthRefusal("invalid_request")
    return form


class Agents:
    """Sign-ins of coding agents, for all organizations."""

    def __init__(self, ports: AdminPorts, calls: str, console: str, limits: AgentLimits) -> None:
        self._ports, self._calls, self._console, self._limits = ports, calls, console, limits
        self._run = ports.store.run
        self._questions = set[asyncio.Task[None]]()

    async def metadata(self, _: web.Request) -> web.Response:
        """Return the metadata of the device grant (RFC 8414), with endpoints below the URL of calls."""
        return web.json_response(
            {
                "issuer": self._calls,
                "device_authorization_endpoint": self._calls + DEVICE_PATH,
                "token_endpoint": self._calls + TOKEN_PATH,
                "revocation_endpoint": self._calls + REVOKE_PATH,
                "grant_types_supported": [DEVICE_GRANT, "refresh_token"],
                "response_types_supported": [],
                "token_endpoint_auth_methods_supported": ["none"],
                "revocation_endpoint_auth_methods_supported": ["none"],
            }
        )

    async def authorize(self, request: web.Request, _: Mapping[str, str]) -> Row:
        """Begin the sign-in of a device; return a code for the device and one for a person to type."""
        code = "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_CHARS))
        agent = "".join(
            character for character in request.headers.get("User-Agent", "") if character.isprintable()
        )
        digest, site = self._digests_of_code(code)[0], site_of(sent_from(request))
        begin = partial(
            stored.begin, user_code=digest, agent=agent[:AGENT_CHARS_MAX], site=site, lasts_s=CODE_S,
            most=self._limits.asking_max, each=self._limits.asking_each_max,
        )  # fmt: skip
        row = await self._run(begin)
        if row is None:
            raise OAuthRefusal("slow_down", 429)
        shown, page = f"{code[:4]}-{code[4:]}", self._console + PAGE
        return {
            "device_code": f"tkd_{row['id']}_{self._derive_digests('device', row)[0]}",
            "user_code": shown,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={shown}",
            "expires_in": CODE_S,
            "interval": POLL_S,
        }

    async def token(self, request: web.Request, form: Mapping[str, str]) -> Row:
        """Return tokens for a device code or a refresh token."""
        grant = form.get("grant_type", "")
        if grant == DEVICE_GRANT:
            return await self._sign_in_of(request, form.get("device_code", ""))
        if grant == "refresh_token":
            return await self._redeem_refresh_token(request, form.get("refresh_token", ""))
        raise OAuthRefusal("unsupported_grant_type")

    async def _sign_in_of(self, request: web.Request, code: str) -> Row:
        """Return the tokens for a device code that a person has allowed; raise OAuthRefusal otherwise."""
        match = _DEVICE.fullmatch(code)
        row = await self._row(int(match[1])) if match else None
        if match is None or row is None or not is_among(match[2], self._derive_digests("device", row)):
            await slow_down(self._ports.failures, request, "unknown")
            raise OAuthRefusal("expired_token")
        if row["state"] == stored.ASKED:
            raise OAuthRefusal("authorization_pending")
        if row["state"] == stored.DENIED:
            raise OAuthRefusal("access_denied")
        if not await self._run(lambda connection: stored.give(connection, row["id"])):
            raise OAuthRefusal("expired_token")
        return self._tokens(row, 0, TOKEN_S)

    async def _redeem_refresh_token(self, request: web.Request, token: str) -> Row:
        """Redeem a refresh token for new tokens; end the sign-in of one that was used before."""
        row, generation = await self._holder(request, token)
        if row is None:
            raise OAuthRefusal("invalid_grant", 401)
        age_s = float(row["age_s"] or 0)
        if generation == row["generation"] - 1 and age_s <= self._limits.grace_s:
            return self._tokens(row, row["generation"], max(1, TOKEN_S - int(age_s)))
        if generation != row["generation"]:
            # The token was exchanged before, so two programs have it, and one of them has stolen it.
            await self._end(request, row, "a refresh token was used again")
            raise OAuthRefusal("invalid_grant", 401)
        if row["renewed_at"] is not None and age_s < self._limits.renewal_s_min:
            raise OAuthRefusal("slow_down", 429)
        actor = await self._ports.store.staff_token(row["token_digest"] or "")
        if actor is None:
            await self._end(request, row, "its person's admin token has ended")
            raise OAuthRefusal("invalid_grant", 401)
        try:
            key_id = await self._next_key(request, replace(actor, person=_person(row)), row)
        except (Conflict, Forbidden, NotFound) as error:
            await self._end(request, row, "its key has ended")
            raise OAuthRefusal("invalid_grant", 401) from error
        await self._run(lambda connection: stored.renew(connection, row["id"], generation, key_id))
        await self._revoke(request, row["earlier_key_id"])
        return self._tokens(row, generation + 1, TOKEN_S)

    async def _next_key(self, request: web.Request, actor: Actor, row: Row) -> int:
        """Rotate the API key of a sign-in; return the id of the new key.

        If another request has rotated it to the same key, its id is returned.
        """
        values = {**self._key_columns(row, int(str(row["generation"])) + 1), "overlap_s": OVERLAP_S}
        key_id = int(str(row["api_key_id"]))
        try:
            return await self._write(request, actor, "rotate", key_id, values)
        except Conflict:
            store = self._ports.store
            before = await store.get(_KEYS, key_id)
            if before["replaced_by_id"] is None:
                raise
            after = await store.get(_KEYS, int(str(before["replaced_by_id"])))
            if after["digest"] != values["digest"] or after["revoked_at"] is not None:
                raise
            return int(str(after["id"]))

    async def revoke(self, request: web.Request, form: Mapping[str, str]) -> Row:
        """End the sign-in of a token (RFC 7009). An unknown token is accepted too."""
        token = form.get("token", "")
        if _REFRESH.fullmatch(token):
            row, _ = await self._holder(request, token)
        else:
            row = await self._find_key_row(token)
        if row is not None:
            await self._end(request, row, "signed out")
        return {}

    async def _find_key_row(self, key: str) -> Any:
        """Return the sign-in of an API key; None for a text that is none."""
        if not key.startswith(API_KEY):
            return None
        for digest in self._ports.peppers.digests(key):
            holder = await self._ports.store.key_holder(digest)
            if holder is not None and holder.api_key_id is not None:
                return await self._run(partial(stored.of_key, api_key_id=holder.api_key_id))
        return None

    async def _holder(self, request: web.Request, token: str) -> tuple[Any, int]:
        """Return a refresh token's sign-in and number of rotations; (None, 0) for an unknown token."""
        match = _REFRESH.fullmatch(token)
        row = await self._row(int(match[1])) if match else None
        generation = int(match[2]) if match else 0
        if (
            match is None or row is None or row["state"] != stored.GIVEN
            or not is_among(match[3], self._derive_digests("refresh", row, generation))
        ):  # fmt: skip
            await slow_down(self._ports.failures, request, "unknown")
            return None, 0
        return row, generation

    # settings and telemetry of agents

    async def settings(self, policy: str, request: web.Request) -> web.Response:
        """`GET /managed/settings`: the company's settings for all its agents; 404 if there are none."""
        await self._require_key(request)
        if not policy:
            raise NotFound
        policy_read = await asyncio.to_thread(_read_policy, policy)
        tag = f'"{policy_read["checksum"]}"'
        if tag in [tag_.strip() for tag_ in request.headers.get("If-None-Match", "").split(",")]:
            return web.Response(status=304, headers={"ETag": tag})
        return web.json_response(policy_read, headers={"ETag": tag})

    async def telemetry(self, request: web.Request) -> web.Response:
        """`POST /v1/metrics` and other telemetry: accepted, so that exporters see no error, and dropped."""
        await self._require_key(request)
        return web.json_response({})

    async def _require_key(self, request: web.Request) -> None:
        """Raise `Unauthorized` unless the request has a valid API key."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized
        actor, _ = await known_key(self._ports, key.strip())
        await take_place(request, actor.organization_id)

    # the page

    async def show(self, desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
        """`GET /device`: the form for a code, which the address may contain. Opening it decides nothing."""
        code, done = request.query.get("user_code", ""), request.query.get("done", "")
        row, status, message = None, 200, ""
        if code and not done:
            row = await self._asking(code)
            if row is None:
                await slow_down(self._ports.failures, request, "unknown")
                status, message = 404, "No device shows this code now. Ask for another one there."
        return desk.answer(
            request, signed, "device.html", status, device=row, code=code, message=message, decided=done
        )

    async def decide(
        self, desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted
    ) -> web.StreamResponse:
        """`POST /device`: allow the device to call as the signed-in person, or deny it."""
        row = await self._asking(str(posted.get("user_code", "")))
        if row is None:
            await slow_down(self._ports.failures, request, "unknown")
            raise NotFound("No device shows this code now. Ask for another one there.")
        if posted.get("decision") != "approve":
            await self._run(lambda connection: stored.decide(connection, row["id"], stored.DENIED))
            return see(f"{PAGE}?done=denied")
        actor = signed.actor
        if (
            actor.tenant_id is None
            or actor.token_id is None
            or not may_write(actor, RESOURCES[_KEYS], CREATE)
        ):
            raise Forbidden("An agent is signed in by who belongs to one tenant and may make its keys.")
        user = await self._user(actor)
        sent: dict[str, object] = {
            "tenant_id": actor.tenant_id, "name": f"Agent of {user}", "user": user, "user_header": "ignore",
        }  # fmt: skip
        values = {**check_body(_key_model(), sent), **self._key_columns(row, 0)}
        key_id = await self._write(request, actor, CREATE, None, values)
        who = actor.person
        said: dict[str, object] = {"token_id": actor.token_id, "api_key_id": key_id} | (
            {"issuer": who.issuer, "identity": who.identity, "person": who.name} if who is not None else {}
        )
        renewal = await self._handed_over(desk, request, row) if who is not None else None
        if renewal is not None:
            said |= {"renewal": renewal, "asked_at": datetime.now(UTC)}
        if not await self._run(
            lambda connection: stored.decide(connection, row["id"], stored.APPROVED, **said)
        ):
            await self._revoke(request, key_id)
            raise NotFound("The code is over. Ask for another one on the device.")
        return see(f"{PAGE}?done=approved")

    async def _handed_over(self, desk: ConsoleShell, request: web.Request, row: Row) -> str | None:
        """Move the provider's refresh token from the person's console session to the sign-in of a device.

        Return it encrypted, or None if the session has none. The session continues without it, since a
        provider accepts a refresh token from one holder only.
        """
        session, cookie = await desk.sessions.of_cookie(request)
        sealed = session.renewal if session is not None else None
        if self._ports.sign_ins is None or session is None or sealed is None:
            return None
        if not await self._run(partial(stored.take_renewal, session_id=session.id, renewal=sealed)):
            return None
        return seal(opened(sealed, cookie), self._derive_digests("renewal", row)[0])

    async def _user(self, actor: Actor) -> str:
        """Return the user to whom the agent's calls are attributed."""
        if actor.user_id is not None:
            return str((await self._ports.store.get("users", actor.user_id))["external_id"])
        if actor.person is None:
            raise Forbidden("This admin token names no user: sign in by a provider, or use one that does.")
        return actor.person.name

    # rows, codes and keys

    async def _row(self, row_id: int) -> Any:
        return await self._run(lambda connection: stored.find(connection, row_id))

    async def _asking(self, code: str) -> Any:
        plain = re.sub(r"[\s-]", "", code[:32]).upper()
        if not _CODE.fullmatch(plain):
            return None
        digests = self._digests_of_code(plain)
        return await self._run(lambda connection: stored.asking(connection, digests))

    def _digests_of_code(self, code: str) -> tuple[str, ...]:
        return self._ports.peppers.digests(f"\0agents code {code}")

    def _derive_digests(self, use: str, row: Any, generation: int = 0) -> tuple[str, ...]:
        """Return the secret of a sign-in for `use`, such as "key", as a digest under each pepper.

        Requests cannot contain the NUL in its text, so nobody can have another secret digested to it.
        """
        return self._ports.peppers.digests(f"\0agents {use} {row['id']} {generation} {row['seed']}")

    def _key(self, row: Any, generation: int) -> str:
        """Return the API key of a sign-in; each rotation increases `generation` by one."""
        return API_KEY + spelled(int(self._derive_digests("key", row, generation)[0], 16))

    def _key_columns(self, row: Any, generation: int) -> dict[str, object]:
        """Return the columns of a sign-in's API key; each rotation increases `generation` by one."""
        key, peppers = self._key(row, generation), self._ports.peppers
        ends = datetime.now(UTC) + timedelta(seconds=TOKEN_S + LASTS_ON_S)
        if row["state"] == stored.GIVEN:
            ends = min(ends, row["expires_at"])
        return {
            "digest": peppers.digest(key), "pepper": peppers.ids[0],
            "prefix": key[: len(API_KEY) + SHOWN_CHARS], "expires_at": ends,
        }  # fmt: skip

    def _tokens(self, row: Any, generation: int, lasts_s: int) -> Row:
        refresh = self._derive_digests("refresh", row, generation)[0]
        return {
            "access_token": self._key(row, generation),
            "token_type": "Bearer",
            "expires_in": lasts_s,
            "refresh_token": f"tkr_{row['id']}_{generation}_{refresh}",
        }

    async def _write(
        self, request: web.Request | None, actor: Actor, verb: str, key_id: int | None, values: Row
    ) -> int:
        """Write an API key as `actor`, push the change, and return the id of the row."""
        ports, render = self._ports.of(actor), RESOURCES[_KEYS].render
        asked_by = request[REQUEST_ID] if request is not None else str(uuid4())
        done = await ports.store.write(Command(_KEYS, verb, actor, asked_by, render, key_id, values))
        assert isinstance(done, CommittedWrite)  # no idempotency key is claimed
        await push(ports, done.intents)
        return int(str(done.row["id"]))

    async def _revoke(self, request: web.Request | None, key_id: int | None) -> None:
        if key_id is not None:
            with suppress(NotFound):  # somebody deleted it
                await self._write(request, _KEEPER, "revoke", key_id, {})

    async def _end(self, request: web.Request | None, row: Any, why: str) -> None:
        """Revoke the keys of a sign-in, then delete it."""
        for key_id in (row["api_key_id"], row["earlier_key_id"]):
            await self._revoke(request, key_id)
        await self._run(lambda connection: stored.end(connection, row["id"]))
        _log.info("an agent's sign-in ended", extra={"sign_in": row["id"], "why": why})

    async def sweeping(self, _: web.Application) -> AsyncIterator[None]:
        """Run a task that ends outdated sign-ins, for as long as the application runs."""
        task = asyncio.create_task(self._keep_sweeping())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self._questions:
            await asyncio.wait(self._questions, timeout=ANSWERS_S_MAX)

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            try:
                await self.sweep()
            except TollkeeperError as error:
                _log.warning("sign-ins of agents are not swept", extra={"why": error.message})

    async def sweep(self) -> None:
        """End sign-ins that have expired, or whose person has lost the admin token or the provider's consent.

        Few people are checked at once, so that sign-ins at the console are not delayed. All are checked
        before the first is due again.
        """
        for row in await self._run(stored.over):
            await self._end(None, row, "over")
        until = time.monotonic() + self._limits.sweep_s
        while rows := await self._run(partial(stored.due, each_s=self._limits.asked_each_s)):
            self._questions = {asyncio.create_task(self._ask_again(row)) for row in rows}
            await asyncio.wait(self._questions)
            if time.monotonic() >= until:
                break

    async def _ask_again(self, row: Any) -> None:
        """Check with the provider whether an agent's person may still sign in; end the sign-in if not.

        Without an answer of the provider nothing changes.
        """
        try:
            renewal = await self._renew_sign_in(row)
            await self._run(partial(stored.keep_renewal, row_id=row["id"], renewal=renewal))
        except SignInRefused:
            with suppress(TollkeeperError):  # otherwise after the next answer
                await self._end(None, row, "its person's provider does not vouch for them")
        except TollkeeperError as error:
            _log.warning("a provider is not asked about an agent", extra={"why": error.message})

    async def _renew_sign_in(self, row: Any) -> str:
        """Renew the sign-in at the provider; return the next renewal secret, or raise `SignInRefused`."""
        sign_ins, person, keys = self._ports.sign_ins, _person(row), self._derive_digests("renewal", row)
        key = next((key for key in keys if _opens(row["renewal"], key)), "")
        if sign_ins is None or person is None or not key:
            raise SignInRefused
        arrival = await sign_ins.renew(person.issuer, row["renewal"], key)
        same = is_same(self._ports.peppers, person, row["token_digest"], arrival.person)
        if arrival.person is not None and not same:
            raise SignInRefused
        return seal(arrival.renewal, keys[0])


def _opens(sealed: str, key: str) -> bool:
    try:
        opened(sealed, key)
    except ValueError:
        return False
    return True


def _read_policy(path: str) -> Row:
    """Return the settings of agents in a file, with their checksum.

    Raise `StoreUnavailable` if the file is no JSON object. An agent computes the checksum in the same way, to
    ask whether it is still current.
    """
    try:
        body = read_regular(path, SETTINGS_BYTES_MAX)
        document = json.loads(body) if len(body) <= SETTINGS_BYTES_MAX else None
    except (OSError, ValueError) as error:
        raise StoreUnavailable("The settings of agents cannot be read.") from error
    if not isinstance(document, dict):
        raise StoreUnavailable("The settings of agents are no JSON object, or too long.")
    plain = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
    return {"uuid": str(UUID(digest[:32])), "checksum": f"sha256:{digest}", "settings": document}


def _person(row: Any) -> PersonIdentity | None:
    who = (row["issuer"], row["identity"], row["person"])
    return PersonIdentity(*who) if row["person"] is not None else None


def _key_model() -> Any:
    return RESOURCES[_KEYS].create
