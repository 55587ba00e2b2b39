"""One worker's data plane: it listens, begins the handling of each request, and ends in order."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from gateway.core.calls.call import DEFAULT_BOUNDS, Bounds, Call
from gateway.core.calls.route import Route, ServiceRules, UpstreamTarget
from gateway.core.http_limits import HttpLimits
from gateway.errors import InternalError, Overloaded, Refusal, StartError
from gateway.http.clock import Clock
from gateway.http.faults import FaultLog
from gateway.http.large_bodies import LargeBodies
from gateway.http.ports import Ports
from gateway.http.protocol.request_ids import RequestIds
from gateway.http.proxy import given_up, proxy
from gateway.http.reply import refuse
from gateway.http.routing.bindings import Bindings
from gateway.http.routing.call_head import CallHead
from gateway.http.routing.cors import Cors
from gateway.http.routing.head_reader import HeadReader
from gateway.http.routing.identity import key_digests
from gateway.http.routing.routed_head import HeadRouter
from gateway.http.server.access import accessed
from gateway.http.server.buffers import Buffers
from gateway.http.server.connection import ClientConnection
from gateway.http.server.exchange import Exchange
from gateway.http.server.listening import Listening, listen
from gateway.http.server.stopping import Stopping
from gateway.http.shares import Shares
from gateway.http.turns import Turns
from gateway.http.upstream.pool import Upstream
from gateway.http.worker import Worker


class DataPlane:
    """Serve routes to clients. Made and used inside a running event loop.

    `services` says where calls of services go. `pepper` is the key of every credential's digest,
    `bounds` what meters believe at most, `origins` are those whose pages may call,
    `workloads` the API keys of clients by the URI of their certificate.
    """

    def __init__(  # noqa: PLR0917  # what it is made of, in the order it is used
        self,
        ports: Ports,
        routes: Sequence[Route],
        targets: Sequence[UpstreamTarget],
        limits: HttpLimits,
        pepper: bytes,
        services: ServiceRules = ServiceRules(),  # noqa: B008  # frozen and empty
        bounds: Bounds = DEFAULT_BOUNDS,
        origins: frozenset[bytes] = frozenset(),
        workloads: Sequence[tuple[str, str]] = (),
    ) -> None:
        loop = asyncio.get_running_loop()
        self.limits = limits
        self.draining = self._shut = False
        self.buffers = Buffers(limits)
        self.clock = Clock(loop, ports.seconds, limits.tick_s, self._check)
        self.turns = Turns(loop, ports.seconds)
        self.lingering = Shares(limits.lingering_max, limits.lingering_each_max)
        self.bodies: LargeBodies[Call | Refusal] = LargeBodies(loop, ports.seconds)
        self._ports = ports
        self._faults = FaultLog(ports.log, ports.seconds)
        self._pepper = pepper
        self._upstreams: dict[str, Upstream] = {}
        self._left: list[Upstream] = []
        self.renew(routes, targets, limits, services, bounds, origins, workloads)
        self._ids = RequestIds(os.urandom, time.time)
        self._connections: set[ClientConnection] = set()
        self._orphans: set[Exchange] = set()
        self._listening: Listening | None = None
        self._stopping = Stopping(self._connections, self._orphans, self.clock, ports.seconds)

    def renew(  # noqa: PLR0917  # as it is made
        self,
        routes: Sequence[Route],
        targets: Sequence[UpstreamTarget],
        limits: HttpLimits,
        services: ServiceRules = ServiceRules(),  # noqa: B008  # frozen and empty
        bounds: Bounds = DEFAULT_BOUNDS,
        origins: frozenset[bytes] = frozenset(),
        workloads: Sequence[tuple[str, str]] = (),
        accepts_tokens: bool | None = None,
    ) -> None:
        """Serve by these from the next request on; those in progress end as they began.

        Connections keep the limits they were accepted under. Nothing has changed where it raises. Whether
        signed tokens are accepted is asked of their port where it is not said.
        """
        by_name = {target.name: target for target in targets}
        missing = {route.upstream for route in routes} | {name for _, name in services.upstreams}
        missing -= {""}  # a route of services: each has its own
        if missing - by_name.keys():
            raise StartError(f"No upstream is configured by the name {min(missing - by_name.keys())}.")
        ports = self._ports
        bindings = Bindings(tuple(routes), by_name, services, ports.directory, ports.log)
        router = HeadRouter(tuple(routes), by_name, bindings, limits)
        peppers = (self._pepper, *ports.earlier_peppers)
        tokens = ports.tokens.accepts if accepts_tokens is None else accepts_tokens
        heads = HeadReader(
            router, self._pepper, limits, traced=ports.tracer is not None,
            cors=Cors(origins) if origins else None, tokens=tokens, earlier=peppers[1:],
        )  # fmt: skip
        digests = {uri: key_digests(key.encode(), peppers) for uri, key in workloads}
        upstreams: dict[str, Upstream] = {}
        for name, target in by_name.items():
            there = self._upstreams.get(name)
            same = there is not None and there.target == target and limits == self.limits
            if not same or there is None:
                there = Upstream(
                    target, self.clock, self.turns, limits, ports.tally, self._pepper, ports.log,
                    ports.look_up,
                )  # fmt: skip
            upstreams[name] = there
        for name, upstream in self._upstreams.items():
            if upstreams.get(name) is not upstream:
                upstream.leave()
                self._left.append(upstream)
        self.buffers.renew(limits)
        ports.tally.begin_with(upstreams)
        ports.cooling.bound(limits.upstream_cooling_s_max, ports.seconds())
        self.limits, self.heads, self._upstreams = limits, heads, upstreams
        self._worker = Worker(
            ports, limits, self.clock, upstreams, bounds, heads, self.buffers, self.bodies, digests
        )

    @property
    def certificate_ends(self) -> list[tuple[str, float]]:
        """Until when, Unix time, the certificates of upstreams met so far are valid."""
        upstreams = self._upstreams.items()
        return [(name, end) for name, one in upstreams if (end := one.certificate_end) is not None]

    def snapshot(self) -> dict[str, object]:
        """What metrics say of now."""
        rows: list[tuple[str, str, int]] = []
        for name, one in self._upstreams.items():
            idle = one.idle_connections
            rows += (name, "busy", one.connections - idle), (name, "idle", idle)
        return {
            "requests_in_flight": self.calls,
            "client_connections": len(self._connections),
            "upstream_connections_open": rows,
        }

    @property
    def calls(self) -> int:
        """Requests in progress now."""
        serving = sum(connection.exchange is not None for connection in self._connections)
        return serving + len(self._orphans)

    def serves_since(self, moment: float) -> bool:
        """Whether a request that began before a moment is still in progress."""
        exchanges = [*(connection.exchange for connection in self._connections), *self._orphans]
        return any(one is not None and one.started <= moment for one in exchanges)

    async def start(
        self,
        own: Sequence[socket.socket],
        others: Sequence[socket.socket] = (),
        wrapped: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None,
    ) -> None:
        """Begin to accept at our own sockets, and at those of others whoever waits there.

        `wrapped` puts TLS before connections.
        """

        def plain() -> ClientConnection:
            return ClientConnection(self)

        for one in (*own, *others):
            # How much the kernel may keep for who does not read; those that are accepted inherit it.
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.limits.client_unsent_bytes_max)
        self._listening = await listen(plain if wrapped is None else wrapped(plain), own, others)
        self.clock.start()

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let requests in progress end within the grace, then close everything."""
        self.draining = True
        if not await self._stopping.run(grace_s, self.limits, self._shut_port):
            self._ports.log("drain_incomplete", calls=self.calls, level="warning")
        for upstream in [*self._upstreams.values(), *self._left]:
            upstream.close()
        self.clock.stop()

    def _shut_port(self) -> None:
        self._shut = True
        if self._listening is not None:
            self._listening.close()

    # what connections ask of their worker

    def opened(self, connection: ClientConnection) -> bool:
        """Count a connection; refuse it where there are too many."""
        self._connections.add(connection)
        limits, there = self.limits, len(self._connections)
        if there <= limits.connections_max and not self._shut:
            return True
        self._ports.tally.connections_refused += 1
        if there <= limits.connections_max + limits.turned_away_max:
            connection.turn_away(Overloaded(retry_after_s=1))
        else:
            connection.transport.abort()
        return False

    def closed(self, connection: ClientConnection) -> None:
        """A connection is gone; its request may still be drained and charged."""
        self._connections.discard(connection)
        if connection.exchange is not None:
            self._orphans.add(connection.exchange)
        else:
            self._stopping.changed()

    def exchange(self, connection: ClientConnection, head: CallHead) -> Exchange:
        """Make the exchange of a request; it is handled once its body is set up."""
        now = self._ports.seconds()
        return Exchange(connection, head, self._ids.next_id(now), now, self._worker, self._ended)

    def tell(self, exchange: Exchange) -> None:
        """Begin the handling of a request."""
        exchange.tell(proxy(exchange), given_up)

    def _ended(self, exchange: Exchange, error: BaseException | None) -> None:
        """A handler is over: count it and let its connection go on."""
        ports = self._ports
        if error is not None:
            self._faults.note(exchange.request_id, error)
            if exchange.opened:
                exchange.broken = True
            else:
                refuse(exchange, InternalError())
        now = ports.seconds()
        tally = ports.tally
        took = now - exchange.started
        upstream = exchange.ended_upstream - exchange.began_upstream if exchange.ended_upstream else 0.0
        tally.request(exchange.routed.label, exchange.status, exchange.reason)
        tally.took(took, upstream, exchange.routed.upstream)
        if exchange.gone:
            tally.client_disconnects += 1
            self._orphans.discard(exchange)
            self._stopping.changed()
        if ports.access_log:
            ports.log("request", **accessed(exchange, took, upstream))

    def _check(self, now: float) -> None:
        """One look at every connection: deadlines, idle ones, and long calls whose hold must be renewed."""
        watched = now - self.limits.watch_after_s
        for connection in list(self._connections):
            if connection.deadline < now:
                connection.expire()
            if connection.exchange is not None:
                connection.exchange.check(now, watched)
        for exchange in list(self._orphans):
            exchange.check(now, watched)
        for upstream in [*self._upstreams.values(), *self._left]:
            upstream.check(now)
        if self._left:  # these go with their last call
            self._left = [upstream for upstream in self._left if upstream.connections]
