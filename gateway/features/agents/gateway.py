"""Agents at the gateway's own port: requests to a fixed list of paths are forwarded to a keeper.

No other path of a keeper can be reached. No query is forwarded, and only the headers that are named here.
Everything that waits is bounded: bodies, concurrent requests in all and of one sender, and the time of each.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.core.accounts.budgets import MONEY
from gateway.core.accounts.intervals import INTERVALS
from gateway.core.calls.routes import Route
from gateway.core.credentials import Peppers, peppers_of
from gateway.core.failures import site_of
from gateway.core.model import Caller
from gateway.core.network import DIRECT, Proxies
from gateway.core.shares import FairShares
from gateway.errors import IssuerUnavailable, Overloaded
from gateway.features.agents.origin import (
    ANSWER_BYTES_MAX,
    DEVICE_PATH,
    FORM_BYTES_MAX,
    METADATA_PATH,
    REVOKE_PATH,
    SENDER_FIELD,
    SETTINGS_PATH,
    TELEMETRY_PATHS,
    TOKEN_PATH,
    USAGE_PATH,
    told_sender,
)
from gateway.features.agents.settings import AgentsSettings
from gateway.files import https_with
from gateway.http.admission import cached_caller, identify
from gateway.http.identity import credential_of
from gateway.http.ports import Answerer, Log
from gateway.http.protocol.request import read_fields
from gateway.http.relay import own_answer
from gateway.http.server.exchange import Exchange
from gateway.settings.settings import Settings

CONNECT_S: Final = 5.0
WITHIN_S: Final = 20.0
# Concurrent requests of one worker to keepers, in all and for one sender.
ASKS_MAX, ASKS_EACH_MAX = 64, 16
# Headers that are forwarded to a keeper, and headers of its answer that are forwarded to the client.
ASKED_WITH: Final = frozenset({b"content-type", b"user-agent", b"if-none-match"})
ANSWERED_WITH: Final = ("content-type", "etag", "retry-after", "cache-control", "www-authenticate")
FIELD_BYTES_MAX: Final = 1024
# All sign-ins share one bound of stored bodies, like the callers of one organization.
NOBODY: Final = Caller(0, 0, 0, 0)
_JSON: Final = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
# A text that sorts after every time.
_NEVER: Final = "~"
# Its status, its fields and its body.
_Answer = tuple[int, Mapping[str, str], bytes]
# Telemetry: bytes of one request, bytes in flight, overhead of each request, and concurrent requests.
TELEMETRY_BYTES_MAX: Final = 1 << 20
ON_THEIR_WAY_BYTES_MAX: Final = 16 << 20
EACH_BYTES: Final = 4096
SENDS_MAX: Final = 8
SEND_S: Final = 10.0
# After so many failures in a row, nothing is sent to a collector for so long.
FAILURES_MAX: Final = 5
LEFT_ALONE_S: Final = 30.0


def answers(settings: Settings, log: Log) -> Mapping[Route, Answerer]:
    """Return the routes for agents with their handlers; empty if the settings name no keeper's URL."""
    own = settings.select(AgentsSettings)
    if not own.agents_keeper_url:
        return {}
    origin = OneOrigin(own.agents_keeper_url, peppers_of(settings), log)
    answerers: dict[Route, Answerer] = {Route(("GET",), METADATA_PATH, ""): origin.pass_on}
    for path in (DEVICE_PATH, TOKEN_PATH, REVOKE_PATH):
        answerers[Route(("POST",), path, "")] = origin.pass_on
    answerers[Route(("GET",), SETTINGS_PATH, "")] = origin.pass_key_on
    answerers[Route(("GET",), USAGE_PATH, "")] = tell_usage
    collector = Collector(own.agents_collector_url, settings.proxies, log)
    for path in TELEMETRY_PATHS:
        answerers[Route(("POST",), path, "")] = collector.take
    return answerers


async def tell_usage(exchange: Exchange) -> None:
    """`GET /api/oauth/usage`: the used part of a caller's budgets, for the `/usage` of Claude Code."""
    caller = cached_caller(exchange) or await identify(exchange)
    ports = exchange.worker.ports
    left = msgspec.json.decode(await ports.usage(caller, exchange.head.attribution))
    own_answer(exchange, 200, _JSON, msgspec.json.encode(usage_of(left, ports.directory.pays_in(caller))))


def usage_of(left: Mapping[str, Any], currency: str) -> dict[str, object]:
    """Return the budgets in `left`, an answer of our `/usage` path, in the form of Claude Code's protocol.

    Percents are whole numbers, amounts are hundredths of the currency. Amounts are those of one money budget:
    the fullest, or the last to reset among the used-up ones.
    """
    budgets = [budget for budget in left["limits"] if budget["scope"] == "budget"]
    shown = max((budget for budget in budgets if budget["unit"] == MONEY), key=_standing, default=None)
    limits = [
        {
            "kind": "spend" if budget["unit"] == MONEY else budget["unit"],
            "group": _group(budget), "percent": _percent(budget),
            "resets_at": budget["reset_at"], "severity": _severity(_percent(budget)), "is_active": budget is shown,
        }
        for budget in budgets
    ]  # fmt: skip
    if shown is None:
        return {"limits": limits}
    amounts = {"monthly_limit": _hundredths(shown["limit"]), "used_credits": _hundredths(shown["used"])}
    document = {"is_enabled": True, **amounts, "utilization": _percent(shown), "currency": currency}
    return {"extra_usage": document, "limits": limits}


def _group(budget: Mapping[str, Any]) -> str:
    """Return the name of a budget's period: `daily`, `quarter`, `rolling 5h`."""
    interval = budget["interval"]
    if interval is None:
        return f"{budget['window']} {budget['length']}"
    return INTERVALS[interval].period or str(interval)


def _standing(budget: Mapping[str, Any]) -> tuple[bool, str, int]:
    full = _percent(budget) >= 100
    return full, (budget["reset_at"] or _NEVER) if full else "", _percent(budget)


def _percent(budget: Mapping[str, Any]) -> int:
    limit, used = Decimal(budget["limit"]), Decimal(budget["used"])
    return int(used * 100 // limit) if limit else 100


def _severity(percent: int) -> str:
    if percent >= 95:
        return "critical"
    return "warning" if percent >= 75 else "normal"


def _hundredths(amount: str) -> int:
    return int((Decimal(amount) * 100).to_integral_value())


class _AgentServer:
    """A keeper or a collector at a URL."""

    def __init__(self, url: str, proxies: Proxies) -> None:
        self.url, self._proxies = url.rstrip("/"), proxies
        self._context: ssl.SSLContext | None = None

    async def ask(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes | None, within_s: float
    ) -> _Answer:
        """Send one request; raise `OSError` with the reason if no answer came."""
        from gateway.outbound.client import TooLarge, ask  # heavy: not every worker needs it

        try:
            if self._context is None and self.url.startswith("https"):
                self._context = https_with(None)
            return await ask(
                method, self.url + path, fields, body, proxies=lambda: self._proxies, context=self._context,
                connect_s=CONNECT_S, within_s=within_s, bytes_max=ANSWER_BYTES_MAX,
            )  # fmt: skip
        except (OSError, TimeoutError, TooLarge) as error:
            raise OSError(str(error)[:200] or type(error).__name__) from error


class Collector:
    """Forwards telemetry of agents to a collector (OTLP over HTTP), or drops it; no agent waits for that.

    The bytes in flight are bounded, in all and for each organization. After some failures in a row it stops
    for a while.
    """

    def __init__(self, url: str, proxies: Proxies, log: Log, bytes_max: int = ON_THEIR_WAY_BYTES_MAX) -> None:
        self._server, self._log = _AgentServer(url, proxies), log
        self._bytes = FairShares(bytes_max, bytes_max // 4)
        self._sending = asyncio.Semaphore(SENDS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = self._dropped = 0
        self._again = 0.0

    async def take(self, exchange: Exchange) -> None:
        """`POST /v1/metrics` and other telemetry of callers with a valid key: always answered 200."""
        caller = cached_caller(exchange) or await identify(exchange)
        if self._server.url:
            body = await exchange.whole_body(caller, TELEMETRY_BYTES_MAX)
            fields = _fields(exchange.head.passed, {b"content-type", b"content-encoding"})
            # These headers are set here, whatever the telemetry itself states.
            fields["x-tollkeeper-organization-id"] = str(caller.organization_id)
            fields["x-tollkeeper-tenant-id"] = str(caller.tenant_id)
            fields["x-tollkeeper-key-id"] = str(caller.key_id)
            self._pass_on(exchange.head.routed.label, fields, body, caller.organization_id)
        own_answer(exchange, 200, _JSON, b"{}")

    def _pass_on(self, path: str, fields: dict[str, str], body: bytes, organization_id: int) -> None:
        """Send telemetry to the collector in a task, or drop it if too much is waiting."""
        size = len(body) + EACH_BYTES
        if time.monotonic() < self._again or not self._bytes.acquire(organization_id, size):
            self._dropped += 1
            return
        task = asyncio.create_task(self._send(path, fields, body))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._bytes.release(organization_id, size)

        task.add_done_callback(ended)

    async def _send(self, path: str, fields: dict[str, str], body: bytes) -> None:
        """Send telemetry; after too many failures, drop all of it for a while."""
        async with self._sending:
            if time.monotonic() < self._again:
                self._dropped += 1
                return
            try:
                status, _, _ = await self._server.ask("POST", path, fields, body, SEND_S)
                why = "" if status < 400 else f"it answers {status}"
            except OSError as error:
                why = str(error)
        self._failed = self._failed + 1 if why else 0
        self._dropped += bool(why)
        if self._failed >= FAILURES_MAX:
            self._log("agents_telemetry_dropped", dropped=self._dropped, why=why, level="warning")
            self._failed = self._dropped = 0
            self._again = time.monotonic() + LEFT_ALONE_S


class OneOrigin:
    """Forwards the requests of agents to a keeper."""

    def __init__(
        self, keeper_url: str, peppers: Peppers, log: Log, asks_each_max: int = ASKS_EACH_MAX
    ) -> None:
        self._keeper, self._peppers, self._log = _AgentServer(keeper_url, DIRECT), peppers, log
        self._asks = FairShares(ASKS_MAX, asks_each_max)
        self._tasks: set[asyncio.Task[_Answer]] = set()

    async def pass_on(self, exchange: Exchange, credential: bytes = b"") -> None:
        """Forward an exchange to the keeper, with an API key if that is its `credential`."""
        routed = exchange.head.routed
        if routed.refusal is not None:
            raise routed.refusal
        assert routed.route is not None
        path, method = routed.route.path, routed.route.methods[0]
        body = await exchange.whole_body(NOBODY, FORM_BYTES_MAX)
        fields = _fields(exchange.head.passed, ASKED_WITH)
        if credential:
            fields["authorization"] = f"Bearer {credential.decode('ascii')}"
        peer = exchange.connection.transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        fields[SENDER_FIELD] = told_sender(self._peppers, path, address, time.time())
        status, headers, content = await self._start_request(
            method, path, fields, body, hash(site_of(address))
        )
        kept = [(name.encode(), headers[name].encode("latin-1")) for name in ANSWERED_WITH if name in headers]
        own_answer(exchange, status, kept, content)

    async def pass_key_on(self, exchange: Exchange) -> None:
        """Forward an exchange to the keeper with its API key, for the keeper to check."""
        if exchange.head.routed.refusal is None and exchange.head.identity_refusal is not None:
            raise exchange.head.identity_refusal
        news = exchange.head.news
        proving = news.proving.split(b"\r\n") if news is not None and news.proving else []
        credential, _ = credential_of(read_fields(proving)[1])
        await self.pass_on(exchange, credential)

    def _start_request(
        self, method: str, path: str, fields: dict[str, str], body: bytes, sender: int
    ) -> asyncio.Task[_Answer]:
        """Start a request to the keeper; raise `Overloaded` if too many are in progress.

        A client that disconnects does not cancel it.
        """
        if not self._asks.acquire(sender):
            raise Overloaded("Too many agents are signed in at once.", retry_after_s=1)
        task = asyncio.create_task(self._ask(method, path, fields, body))
        self._tasks.add(task)

        def ended(task: asyncio.Task[_Answer]) -> None:
            self._tasks.discard(task)
            self._asks.release(sender)
            with suppress(asyncio.CancelledError):
                task.exception()  # nobody may wait for it any more

        task.add_done_callback(ended)
        return task

    async def _ask(self, method: str, path: str, fields: dict[str, str], body: bytes) -> _Answer:
        try:
            return await self._keeper.ask(method, path, fields, body or None, WITHIN_S)
        except OSError as error:
            self._log("agents_unanswered", path=path, why=str(error), level="warning")
            raise IssuerUnavailable("No keeper answers what agents ask.", retry_after_s=1) from error


def _fields(passed: bytes, names: Collection[bytes]) -> dict[str, str]:
    """Return those headers in the lines `passed` whose names are in `names`, without overlong ones."""
    lines = (line.partition(b":") for line in passed.split(b"\r\n"))
    return {
        name.lower().decode("ascii"): value.strip(b" \t").decode("latin-1")
        for name, _, value in lines
        if name.lower() in names and len(value) <= FIELD_BYTES_MAX
    }
