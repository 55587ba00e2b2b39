"""Agents at the gateway's own port: a fixed list of their paths goes on to a keeper.

No other path of a keeper can be reached, no query goes on, and of the fields only those that are named here.
All that waits is bounded: bodies, requests at once of all senders and of one, and the time of each.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from gateway.core.calls.routes import Route
from gateway.core.credentials import Peppers, peppers_of, site_of
from gateway.core.model import Caller
from gateway.errors import IssuerUnavailable, Overloaded, RequestTooLarge
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
    told_sender,
)
from gateway.files import https_with
from gateway.http.admission import identify, known
from gateway.http.fair_share import FairShares
from gateway.http.identity import credential_of
from gateway.http.ports import Answerer, Log
from gateway.http.protocol.request import read_fields
from gateway.http.relay import own_answer
from gateway.http.server.exchange import Exchange
from gateway.settings.settings import Settings

CONNECT_S: Final = 5.0
WITHIN_S: Final = 20.0
# Requests of one worker that keepers are asked at once, and those of one sender.
ASKS_MAX, ASKS_EACH_MAX = 64, 16
# Of these fields a keeper hears, and a client of these of its answer.
ASKED_WITH: Final = frozenset({b"content-type", b"user-agent", b"if-none-match"})
ANSWERED_WITH: Final = ("content-type", "etag", "retry-after", "cache-control", "www-authenticate")
FIELD_BYTES_MAX: Final = 1024
# All who sign in share what is kept of bodies, as the callers of one organization do.
NOBODY: Final = Caller(0, 0, 0, 0)
_TAKEN: Final = [(b"content-type", b"application/json")]


def answers(settings: Settings, log: Log) -> Mapping[Route, Answerer]:
    """The routes of agents, and who answers them; none without the address of a keeper."""
    if not settings.agents_keeper_url:
        return {}
    origin = OneOrigin(settings.agents_keeper_url, peppers_of(settings), log)
    found: dict[Route, Answerer] = {Route(("GET",), METADATA_PATH, ""): origin.pass_on}
    for path in (DEVICE_PATH, TOKEN_PATH, REVOKE_PATH):
        found[Route(("POST",), path, "")] = origin.pass_on
    found[Route(("GET",), SETTINGS_PATH, "")] = origin.pass_key_on
    for path in TELEMETRY_PATHS:
        found[Route(("POST",), path, "")] = take_telemetry
    return found


async def take_telemetry(exchange: Exchange) -> None:
    """`POST /v1/metrics` and the like: taken, lest its exporter complains, and dropped."""
    known(exchange) or await identify(exchange)
    own_answer(exchange, 200, _TAKEN, b"{}")


class OneOrigin:
    """Asks a keeper what an agent asks."""

    def __init__(
        self, keeper_url: str, peppers: Peppers, log: Log, asks_each_max: int = ASKS_EACH_MAX
    ) -> None:
        self._url, self._peppers, self._log = keeper_url.rstrip("/"), peppers, log
        self._asks = FairShares(ASKS_MAX, asks_each_max)
        self._tasks: set[asyncio.Task[tuple[int, Mapping[str, str], bytes]]] = set()
        self._context: ssl.SSLContext | None = None

    async def pass_on(self, exchange: Exchange) -> None:
        """Answer as a keeper does who is asked without a credential."""
        await self._pass(exchange, {})

    async def pass_key_on(self, exchange: Exchange) -> None:
        """The same with the API key, which the keeper judges. Heads with it are not remembered here."""
        if exchange.routed.refusal is None and exchange.head.identity_refusal is not None:
            raise exchange.head.identity_refusal
        news = exchange.head.news
        proving = news.proving.split(b"\r\n") if news is not None and news.proving else []
        credential, _ = credential_of(read_fields(proving)[1])
        await self._pass(exchange, {"authorization": f"Bearer {credential.decode('ascii')}"})

    async def _pass(self, exchange: Exchange, fields: dict[str, str]) -> None:
        if exchange.routed.refusal is not None:
            raise exchange.routed.refusal
        assert exchange.routed.route is not None
        path, method = exchange.routed.route.path, exchange.routed.route.methods[0]
        body = await _form(exchange)
        for line in exchange.head.passed.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() in ASKED_WITH and len(value) <= FIELD_BYTES_MAX:
                fields[name.lower().decode("ascii")] = value.strip(b" \t").decode("latin-1")
        peer = exchange.connection.transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        fields[SENDER_FIELD] = told_sender(self._peppers, path, address, time.time())
        status, said, content = await self._asked(method, path, fields, body, hash(site_of(address)))
        told = [(name.encode(), said[name].encode("latin-1")) for name in ANSWERED_WITH if name in said]
        own_answer(exchange, status, told, content)

    def _asked(
        self, method: str, path: str, fields: dict[str, str], body: bytes, sender: int
    ) -> asyncio.Task[tuple[int, Mapping[str, str], bytes]]:
        """Ask within the bounds; an agent that leaves meanwhile ends nothing that a keeper began."""
        if not self._asks.acquire(sender):
            raise Overloaded("Too many agents are signed in at once.", retry_after_s=1)
        task = asyncio.create_task(self._ask(method, path, fields, body))
        self._tasks.add(task)

        def ended(task: asyncio.Task[tuple[int, Mapping[str, str], bytes]]) -> None:
            self._tasks.discard(task)
            self._asks.release(sender)
            with suppress(asyncio.CancelledError):
                task.exception()  # nobody may wait for it any more

        task.add_done_callback(ended)
        return task

    async def _ask(
        self, method: str, path: str, fields: dict[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        from gateway.core.network import DIRECT  # noqa: PLC0415  # as the client
        from gateway.outbound.client import TooLarge, exchanged  # noqa: PLC0415  # heavy: not every worker needs it

        if self._context is None and self._url.startswith("https"):
            self._context = https_with(None)
        try:
            return await exchanged(
                method, self._url + path, fields, body or None, proxies=lambda: DIRECT,
                context=self._context, connect_s=CONNECT_S, within_s=WITHIN_S, bytes_max=SETTINGS_BYTES_MAX,
            )  # fmt: skip
        except (OSError, TimeoutError, TooLarge) as error:
            self._log(
                "agents_unanswered", path=path, why=str(error)[:200] or type(error).__name__, level="warning"
            )
            raise IssuerUnavailable("No keeper answers what agents ask.", retry_after_s=1) from error


async def _form(exchange: Exchange) -> bytes:
    """The whole body of a request that nobody's key came with."""
    if exchange.head.refusal is not None:
        raise exchange.head.refusal
    buffers = exchange.worker.buffers
    if buffers.pressed:
        buffers.check_new(NOBODY)
    connection = exchange.connection
    if exchange.body_failure is not None:
        raise exchange.body_failure
    if not connection.body_complete:
        exchange.caller = NOBODY
        try:
            await exchange.late_body(FORM_BYTES_MAX)
        finally:
            exchange.caller = None
    body = connection.body.take_parts()
    if not connection.body_complete or len(body) > FORM_BYTES_MAX:
        raise RequestTooLarge(f"A form here may have {FORM_BYTES_MAX} bytes.")
    return body
