"""One worker's data plane: it listens, begins the story of each request, and ends in order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.call import DEFAULT_BOUNDS, Bounds
from gateway.core.route import Route, UpstreamTarget
from gateway.errors import InternalError, Overloaded, StartError
from gateway.http.clock import Clock
from gateway.http.connection import ClientConnection
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.limits import HttpLimits
from gateway.http.plan import Plan, Planner
from gateway.http.ports import Ports
from gateway.http.proxy import proxy
from gateway.http.reply import refuse
from gateway.http.request_ids import RequestIds
from gateway.http.upstream import Upstream
from gateway.http.worker import Worker

BACKLOG = 4096


class DataPlane:
    """Serve routes to clients. Made and used inside a running event loop.

    `service_upstreams` maps a service key to the name of its target; a service without an
    entry goes to the target of its route. `pepper` is the key of every credential's digest,
    `bounds` what meters believe at most.
    """

    def __init__(  # noqa: PLR0917  # what it is made of, in the order of its story
        self,
        ports: Ports,
        routes: Sequence[Route],
        targets: Sequence[UpstreamTarget],
        limits: HttpLimits,
        pepper: bytes,
        service_upstreams: Mapping[str, str] | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.limits = limits
        self.draining = False
        self.clock = Clock(loop, ports.seconds, limits.tick_s)
        by_name = {target.name: target for target in targets}
        missing = {route.upstream for route in routes} | set((service_upstreams or {}).values())
        if missing - by_name.keys():
            raise StartError(f"No upstream is configured by the name {min(missing - by_name.keys())}.")
        self.planner = Planner(
            tuple(routes), by_name, service_upstreams or {}, pepper, limits, traced=ports.tracer is not None
        )
        self._ports = ports
        self._upstreams = {
            name: Upstream(target, self.clock, limits, ports.tally) for name, target in by_name.items()
        }
        self._worker = Worker(ports, limits, self.clock, self._upstreams, bounds)
        self._ids = RequestIds(os.urandom)
        self._connections: set[ClientConnection] = set()
        self._orphans: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self.clock.every_tick(self._check)
        for upstream in self._upstreams.values():
            self.clock.every_tick(upstream.check)

    @property
    def connections(self) -> int:
        """Client connections open now."""
        return len(self._connections)

    @property
    def upstream_connections(self) -> int:
        """Upstream connections open or being opened now."""
        return sum(upstream.connections for upstream in self._upstreams.values())

    @property
    def certificate_ends(self) -> list[tuple[str, float]]:
        """Until when, Unix time, the certificates of upstreams met so far are valid."""
        upstreams = self._upstreams.items()
        return [(name, end) for name, one in upstreams if (end := one.certificate_end) is not None]

    @property
    def calls(self) -> int:
        """Requests in progress now."""
        serving = sum(connection.exchange is not None for connection in self._connections)
        return serving + len(self._orphans)

    async def start(
        self,
        *,
        sock: socket.socket | None = None,
        host: str | None = None,
        port: int = 0,
        reuse_port: bool = False,
    ) -> int:
        """Begin to accept, on a listening socket or on host and port; the port that is bound."""
        loop = asyncio.get_running_loop()
        if sock is not None:
            self._server = await loop.create_server(self._protocol, sock=sock, backlog=BACKLOG)
        else:
            self._server = await loop.create_server(
                self._protocol, host, port, reuse_port=reuse_port, backlog=BACKLOG
            )
        self.clock.start()
        server: Any = self._server  # its sockets are a tuple in asyncio, a list in uvloop
        return int(server.sockets[0].getsockname()[1])

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let requests in progress end within the grace, then close everything."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.shut()
        if not await self._emptied(grace_s):
            for connection in [*self._connections, *self._orphans]:
                if connection.exchange is not None:
                    connection.exchange.interrupt(ClientGone())
                connection.transport.abort()
            if not await self._emptied(self.limits.counters_s):
                self._ports.log("drain_incomplete", calls=self.calls)
        for upstream in self._upstreams.values():
            upstream.close()
        self.clock.stop()

    async def _emptied(self, within_s: float) -> bool:
        """Whether every connection and every call without a client is over in time."""
        if self._connections or self._orphans:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), within_s)
            except TimeoutError:
                return False
        return True

    # what connections ask of their worker

    def opened(self, connection: ClientConnection) -> bool:
        """Count a connection; refuse it where there are too many."""
        self._connections.add(connection)
        if len(self._connections) <= self.limits.connections_max and not self.draining:
            return True
        self._ports.tally.connections_refused += 1
        connection.turn_away(Overloaded(retry_after_s=1))
        return False

    def closed(self, connection: ClientConnection) -> None:
        """A connection is gone; its request may still be drained and charged."""
        self._connections.discard(connection)
        if connection.exchange is not None:
            self._orphans.add(connection)
        elif not self._connections and not self._orphans:
            self._empty.set()

    def exchange(self, connection: ClientConnection, plan: Plan) -> Exchange:
        """Make the exchange of a request; its story is told once its body is set up."""
        return Exchange(connection, plan, self._ids.next(), self._ports.seconds(), self._ended)

    def tell(self, exchange: Exchange) -> None:
        """Begin the story of a request."""
        exchange.tell(proxy(exchange, self._worker))

    def _protocol(self) -> ClientConnection:
        return ClientConnection(self)

    def _ended(self, exchange: Exchange, error: BaseException | None) -> None:
        """A story is over: count it and let its connection go on."""
        ports = self._ports
        if error is not None:
            ports.log("story_failed", request_id=exchange.request_id, error=repr(error), level="error")
            if exchange.opened:
                exchange.broken = True
            else:
                refuse(exchange, InternalError())
        now = ports.seconds()
        tally = ports.tally
        took = now - exchange.started
        upstream = exchange.ended_upstream - exchange.began_upstream if exchange.ended_upstream else 0.0
        tally.request(exchange.plan.label, exchange.status, exchange.reason)
        tally.took(took, upstream)
        if exchange.gone:
            tally.client_disconnects += 1
            self._orphans.discard(exchange.connection)
            if not self._connections and not self._orphans:
                self._empty.set()
        if ports.access_log:
            ports.log(
                "request",
                request_id=exchange.request_id,
                route=exchange.plan.label,
                status=exchange.status,
                reason=exchange.reason,
                duration_ms=round(took * 1000, 3),
            )

    def _check(self, now: float) -> None:
        """One look at every connection: deadlines, and long calls whose hold must be renewed."""
        watched = now - self.limits.watch_after_s
        for connection in [*self._connections, *self._orphans]:
            if connection.deadline < now:
                connection.expire()
            exchange = connection.exchange
            if exchange is not None:
                if exchange.deadline < now:
                    exchange.expire()
                elif exchange.charge is not None and exchange.observed is None and exchange.started < watched:
                    exchange.charge.watch()
