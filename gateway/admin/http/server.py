"""Listens on the admin port: a maximum of connections, deadlines for slow senders and readers.

Connections of identified callers are never closed to make room: if all connections are used, an unidentified
one is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

# Bytes on the admin port that are not HTTP: counted, and logged rarely, without their content.
#
# By default aiohttp logs each malformed head with its content, at any length.

TOLD_EACH_S = 60.0


def port_logger(clock: Callable[[], float]) -> logging.Logger:
    # Not by name: each port has its own logger, and passes its records to the common handlers.
    made = logging.Logger("tollkeeper.admin.http")  # noqa: LOG001  # one of a name would be all ports' at once
    made.parent = logging.getLogger()
    made.addFilter(Unreadable(clock))
    return made


class Unreadable(logging.Filter):
    """Reduces log records of malformed requests to one line with their number at intervals."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._count, self._next = 0, 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged; malformed requests pass at intervals, without their content."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        self._count += 1
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + TOLD_EACH_S
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args, record.exc_info = "what came to the admin port is no HTTP", (), None
        record.facts = {"requests": self._count, "why": type(error).__name__}
        self._count = 0
        return True


ProtocolFactory = Callable[[], asyncio.Protocol]
Wrapped = Callable[[ProtocolFactory], ProtocolFactory]

KEEPALIVE_S = 30.0
SHUTDOWN_S = 10.0
BACKLOG = 128
LINE_BYTES_MAX = 8 * 1024
FIELD_BYTES_MAX = 16 * 1024
# Set once the caller of a request is identified.
IDENTIFIED = web.RequestKey("identified", bool)
# The resources of a request until it is answered, such as its work slot.
HELD = web.RequestKey("held", AsyncExitStack)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The maximum of connections, and the seconds a connection may stay open without a complete head.

    `head_s` counts from the connection, `next_s` from an answer: within it the client must have read the
    answer, sent the rest of a refused body, and sent the next head.
    """

    connections_max: int = 512
    head_s: float = 10.0
    next_s: float = 60.0


@dataclass(frozen=True, slots=True)
class AdminListener:
    """A listening server; `port` is the actual port."""

    port: int
    runner: web.AppRunner
    servers: Sequence[asyncio.Server]

    async def stop(self) -> None:
        for server in self.servers:
            server.close()
        await self.runner.cleanup()


async def listen(
    app: web.Application,
    host: str = "",
    port: int = 0,
    bounds: ConnectionLimits | None = None,
    *,
    sockets: Sequence[socket.socket] = (),
    wrapped: Wrapped | None = None,
) -> AdminListener:
    """Serve the application; port 0 takes any free port. Raise `OSError` if the port is in use.

    With `sockets`, which are bound already, it is served on those. `wrapped` adds TLS to connections.
    """
    connections = Connections(bounds or ConnectionLimits())
    app.middlewares.insert(0, connections.middleware())
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=port_logger(asyncio.get_running_loop().time),
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=FIELD_BYTES_MAX,
    )
    await runner.setup()
    assert runner.server is not None
    inner: ProtocolFactory = runner.server

    def plain() -> asyncio.Protocol:
        return cast("asyncio.Protocol", _Connection(connections, inner()))

    made: ProtocolFactory = plain if wrapped is None else wrapped(plain)
    create = partial(asyncio.get_running_loop().create_server, made, backlog=BACKLOG)
    servers: list[asyncio.Server] = []
    try:
        servers.extend([await create(sock=bound) for bound in sockets] or [await create(host, port)])
    except OSError:
        await runner.cleanup()
        raise
    return AdminListener(int(servers[0].sockets[0].getsockname()[1]), runner, servers)


class Connections:
    """The open connections of the port; `len()` is their number.

    If the maximum is reached, the connection that has waited longest without a complete head is closed; else
    one with an unidentified request. If all are identified, the new one is closed.
    """

    def __init__(self, bounds: ConnectionLimits) -> None:
        self._bounds = bounds
        # Connections without a complete head, oldest first, each with its deadline.
        self.waiting: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        self._asking: dict[asyncio.Transport, web.Request] = {}

    def __len__(self) -> int:
        return len(self.waiting) + len(self._asking)

    def opened(self, transport: asyncio.Transport) -> None:
        """Register a connection; at the maximum, close the new one or one that is open already."""
        if len(self) >= self._bounds.connections_max:
            out = self._first_to_go() or transport
            self.closed(out)
            out.abort()
            if out is transport:
                return
        self._wait(transport, self._bounds.head_s)

    def closed(self, transport: asyncio.Transport) -> None:
        deadline = self.waiting.pop(transport, None)
        if deadline is not None:
            deadline.cancel()
        self._asking.pop(transport, None)

    def middleware(self) -> Middleware:
        """Return the outermost middleware, which records the request of each connection."""

        @web.middleware
        async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            if transport in self.waiting:
                self.closed(transport)
                self._asking[transport] = request
            try:
                return await handler(request)
            finally:
                if transport is not None and self._asking.pop(transport, None) is not None:
                    self._wait(transport, self._bounds.next_s)

        return noted

    def _wait(self, transport: asyncio.Transport, seconds: float) -> None:
        self.waiting[transport] = asyncio.get_running_loop().call_later(seconds, transport.abort)

    def _first_to_go(self) -> asyncio.Transport | None:
        if self.waiting:
            return next(iter(self.waiting))
        nobodies = (task for task, request in self._asking.items() if IDENTIFIED not in request)
        return next(nobodies, None)


class _Connection:
    """A protocol that registers its connection and passes everything on to `inner`."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from nothing
        self._connections.opened(self._transport)
        self._inner.connection_made(transport)

    def shut(self) -> None:
        assert self._transport is not None
        if self._transport in self._connections.waiting:
            self._transport.close()
        else:
            cast("web.RequestHandler", self._inner).close()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._connections.closed(self._transport)
        self._inner.connection_lost(exc)


# The number and duration of the admin port's answers, by part of the port, so that there are few metrics.
