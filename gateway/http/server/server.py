"""The data plane of one worker: listens, starts the handling of requests, and shuts down in order."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gateway.calls.ports import AdmissionPorts
from gateway.core.calls.call import DEFAULT_BOUNDS, UsageBounds
from gateway.core.calls.models import ConfiguredModels
from gateway.core.calls.routes import ModelRule, Route, ServiceRules, UpstreamTarget
from gateway.core.families.registry import BATCH_COLLECTIONS, BATCH_MAKERS, LISTS, OF_JOBS, REMAKERS
from gateway.core.http_limits import HttpLimits
from gateway.core.shares import FairShares
from gateway.errors import InternalError, Overloaded, StartError, UnknownRoute, UpgradeRefused
from gateway.http.collections import at_collection
from gateway.http.identity import key_digests
from gateway.http.ports import Answerer, Ports
from gateway.http.protocol.request_ids import RequestIds
from gateway.http.proxy import proxy, resource, usage
from gateway.http.reply import FaultLog, given_up, refuse
from gateway.http.routing.cors import Cors
from gateway.http.routing.head import CallHead, HeadReader
from gateway.http.routing.routed_head import HeadRouter
from gateway.http.routing.routes import METADATA_PATH, OWN_ROUTES, RESOURCE_PATH, USAGE_PATH, is_lasting
from gateway.http.routing.worker_bindings import WorkerBindings
from gateway.http.server.buffers import Buffers
from gateway.http.server.connection import ClientConnection
from gateway.http.server.exchange import ClientGone, Exchange, Worker
from gateway.http.tally import TickClock
from gateway.http.turns import FairQueue, LargeBodies
from gateway.http.upstream.pool import Upstream
from gateway.outbound.cloud import CloudSigner

# A worker accepts clients at its own sockets, and at those of workers that let clients wait.
#
# A worker that is dead, hangs or is busy accepts no clients. The supervisor holds its socket, so clients
# wait; the other workers accept them after a moment.

BACKLOG = 4_096
# After this time other workers accept a waiting client.
WAITS_S_MAX = 0.05
# Maximum of clients accepted in one iteration of the event loop.
TAKEN_MAX = 64

Made = Callable[[], Any]


class Listener:
    """The listening sockets of a worker, until they are closed."""

    def __init__(self, servers: Sequence[asyncio.Server], others: Sequence[AcceptSharing]) -> None:
        self._servers, self._others = servers, others

    @property
    def sockets(self) -> list[socket.socket]:
        return [one for server in self._servers for one in server.sockets]

    def close(self) -> None:
        """Stop accepting clients."""
        for server in self._servers:
            server.close()
        for other in self._others:
            other.close()


async def listen(made: Made, own: Sequence[socket.socket], others: Sequence[socket.socket] = ()) -> Listener:
    """Accept clients with the protocol factory `made` at this worker's `own` sockets.

    At sockets of `others`, accept clients only if the other workers do not accept them in a moment.
    """
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(made, sock=one, backlog=BACKLOG) for one in own]
    return Listener(servers, [AcceptSharing(one, made, loop) for one in others])


class AcceptSharing:
    """Accepts clients that wait at another worker's socket, if that worker does not in a moment."""

    def __init__(
        self, there: socket.socket, made: Made, loop: asyncio.AbstractEventLoop,
        waits_s_max: float = WAITS_S_MAX,
    ) -> None:  # fmt: skip
        self._listener, self._protocol_factory, self._loop, self._waits_s_max = there, made, loop, waits_s_max
        self._later: asyncio.TimerHandle | None = None
        self._begun_tasks: set[asyncio.Task[Any]] = set()
        loop.add_reader(there, self._wait)

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _wait(self) -> None:
        self._loop.remove_reader(self._listener)
        self._later = self._loop.call_later(self._waits_s_max, self._take)

    def _take(self) -> None:
        """Accept the waiting connections that other workers have left."""
        self._later = None
        with suppress(OSError):  # no client waits any more, or no file descriptor is free
            for _ in range(TAKEN_MAX):
                client, _ = self._listener.accept()
                client.setblocking(False)
                task = self._loop.create_task(self._begin(client))
                self._begun_tasks.add(task)
                task.add_done_callback(self._begun_tasks.discard)
        self._loop.add_reader(self._listener, self._wait)

    async def _begin(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol_factory, client)
        except OSError:  # the client is gone
            client.close()


# Shutdown: clients are asked to leave, calls have a grace period, the remaining ones are broken off.
#
# No client can delay this: after its call, a client that does not read is disconnected.

QUIET_TIMES_MAX = 5
STOPPING = "This gateway is stopping, and its time for calls in progress is over. Send the request again."


class Shutdown:
    """The end of a worker's service: `connections`, and `orphans`, which are calls whose clients are gone.

    The data plane owns both sets, and calls `changed` when an element is removed. While `closing`, new
    connections are refused.
    """

    def __init__(
        self,
        connections: set[ClientConnection],
        orphans: set[Exchange],
        clock: TickClock,
        seconds: Callable[[], float],
    ) -> None:
        self._connections, self._orphans = connections, orphans
        self._clock, self._seconds = clock, seconds
        self._empty = asyncio.Event()
        self.closing = False

    def changed(self) -> None:
        """Signal the end if no connection is left, and no call that goes on without its client."""
        if not self._connections and not self._orphans:
            self._empty.set()

    async def run(self, grace_s: float, limits: HttpLimits, shut: Callable[[], None]) -> bool:
        """Wait for calls within `grace_s`, then break off the others; return whether all calls are settled.

        At first every answer closes its connection, until the remaining connections have been idle for a
        while: a request on its way to a closed connection would be lost. `shut` is then called to stop
        accepting; clients accepted last get the same time. The method returns at most `counters_s` after the
        grace period.
        """
        began = self._seconds()
        await self._quiet(min(QUIET_TIMES_MAX * limits.quiet_s, grace_s / 2), limits)
        shut()
        await asyncio.sleep(min(limits.tick_s, grace_s / 4))  # until accepted connections are set up
        await self._quiet(min(limits.quiet_s, grace_s / 4), limits)
        self.closing = True
        for connection in list(self._connections):
            connection.shut()
        if await self._wait_until_empty(grace_s - (self._seconds() - began)):
            return True
        return await self._broken_off(limits)

    async def _quiet(self, within_s: float, limits: HttpLimits) -> None:
        """Wait until no idle connection has had a call lately."""
        seconds, quiet_s = self._seconds, limits.quiet_s
        end = seconds() + within_s
        while seconds() < end:  # polled, as no event reports that nothing happens
            now = self._clock.now
            if not any(
                connection.exchange is None and now - connection.idle_since < quiet_s
                for connection in self._connections
            ):
                return
            await asyncio.sleep(limits.tick_s)

    async def _broken_off(self, limits: HttpLimits) -> bool:
        """End every call now; a client gets an error in its API's format if possible.

        The client has `linger_s` to read the error. A call during admission or settlement is interrupted only
        after that step. Return whether all calls are settled.
        """
        now = self._seconds()
        end, told = now + limits.counters_s, set[Exchange]()
        leaves = {connection: now for connection in self._connections if connection.exchange is None}
        while True:
            for exchange in [*self._orphans, *(connection.exchange for connection in self._connections)]:
                if exchange is not None and exchange not in told and not exchange.shielded:
                    told.add(exchange)
                    exchange.interrupt(
                        ClientGone() if exchange.gone else Overloaded(STOPPING, retry_after_s=1)
                    )
            now = self._seconds()
            for connection in list(self._connections):
                if (
                    connection.exchange is None
                    and leaves.setdefault(connection, now + limits.linger_s) <= now
                ):
                    connection.transport.abort()
            if await self._wait_until_empty(min(limits.tick_s, end - now)):
                return True
            if self._seconds() >= end:
                break
        for connection in list(self._connections):
            connection.transport.abort()
        return False

    async def _wait_until_empty(self, within_s: float) -> bool:
        """Wait until all connections and calls without clients end; return False after `within_s` seconds."""
        if self._connections or self._orphans:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), max(0.0, within_s))
            except TimeoutError:
                return False
        return True


# The access log: one line a request.
#
# Never contents or credentials. The ids of tenant and organization identify a caller.
def accessed(exchange: Exchange, took_s: float, upstream_s: float) -> dict[str, object]:
    """Return the facts of one line of the access log, with times in milliseconds."""
    caller, call, routed = exchange.caller, exchange.call, exchange.head.routed
    facts: dict[str, object] = {
        "request_id": exchange.request_id,
        "route": routed.label,
        "status": exchange.status,
        "reason": exchange.reason,
        "duration_ms": round(took_s * 1000, 3),
    }
    if caller is not None:
        facts |= {"organization_id": caller.organization_id, "tenant_id": caller.tenant_id}
    if call is not None:
        facts["model"] = call.spec.model
    if upstream_s > 0.0:
        facts |= {"upstream": exchange.attempt.name, "upstream_ms": round(upstream_s * 1000, 3)}
    if exchange.attempt.failed_before:
        facts["passed_over"] = [f"{upstream} {cause}" for upstream, cause in exchange.attempt.failed_before]
    return facts


async def refuse_route(_: Exchange) -> None:
    """Answer that the path belongs to a feature that is not installed."""
    raise UnknownRoute


# Handlers of paths that the gateway answers; features add others.
HANDLERS = {
    **{route.path: refuse_route for route in OWN_ROUTES},
    USAGE_PATH: usage, METADATA_PATH: resource, RESOURCE_PATH: resource,
    **{path: at_collection for list_ in LISTS for path in list_.paths},
    **dict.fromkeys(OF_JOBS | BATCH_COLLECTIONS | BATCH_MAKERS | REMAKERS, refuse_route),
}  # fmt: skip


async def refuse_upgrade(_: Exchange) -> None:
    """Refuse a WebSocket if no feature serves it."""
    raise UpgradeRefused


class DataPlane:
    """Serves routes to clients. Created and used inside a running event loop.

    `services` are the upstreams of services. `pepper` is the key of all credential digests, `bounds` are the
    maxima that meters believe, `origins` the web origins whose pages may call, `workloads` API keys by the
    URI of a client certificate, `models` the configured models.
    """

    def __init__(  # noqa: PLR0917  # what it is made of, in the order it is used
        self,
        ports: Ports,
        routes: Sequence[Route],
        targets: Sequence[UpstreamTarget],
        limits: HttpLimits,
        pepper: bytes,
        services: ServiceRules = ServiceRules(),  # noqa: B008  # frozen and empty
        bounds: UsageBounds = DEFAULT_BOUNDS,
        origins: frozenset[bytes] = frozenset(),
        workloads: Sequence[tuple[str, str]] = (),
        models: Sequence[ModelRule] = (),
    ) -> None:
        loop, ports = asyncio.get_running_loop(), self.observed(ports)
        self.limits = limits
        self.draining = False
        self.buffers = Buffers(limits)
        self.clock = TickClock(loop, ports.seconds, limits.tick_s, self._check)
        self.turns = FairQueue(loop, ports.seconds)
        self.lingering = FairShares(limits.lingering_max, limits.lingering_each_max)
        self.sockets, self.sockets_keep = FairShares(), FairShares()
        self.frames = FairQueue(loop, ports.seconds)
        self.bodies = LargeBodies(loop, ports.seconds)
        self.limiter = None if ports.limiter is None else ports.limiter(ports, loop, limits)
        self._ports = ports
        self._open_socket: Answerer = ports.open_socket or refuse_upgrade
        self._handlers: dict[str, Answerer] = {}
        self._faults = FaultLog(ports.log, ports.seconds)
        self._pepper = pepper
        self._upstreams: dict[str, Upstream] = {}
        self._removed_upstreams: list[Upstream] = []
        self.renew(routes, targets, limits, services, bounds, origins, workloads, models=models)
        self._ids = RequestIds(os.urandom, time.time)
        self._connections: set[ClientConnection] = set()
        self._orphans: set[Exchange] = set()
        self._listening: Listener | None = None
        self._stopping = Shutdown(self._connections, self._orphans, self.clock, ports.seconds)

    def observed(self, ports: Ports) -> Ports:
        """Return the ports that calls use; a subclass may wrap them."""
        return ports

    def renew(  # noqa: PLR0917  # as it is made
        self,
        routes: Sequence[Route],
        targets: Sequence[UpstreamTarget],
        limits: HttpLimits,
        services: ServiceRules = ServiceRules(),  # noqa: B008  # frozen and empty
        bounds: UsageBounds = DEFAULT_BOUNDS,
        origins: frozenset[bytes] = frozenset(),
        workloads: Sequence[tuple[str, str]] = (),
        accepts_tokens: bool | None = None,
        models: Sequence[ModelRule] = (),
    ) -> None:
        """Apply a new configuration from the next request on; requests in progress keep the old one.

        Connections keep the limits from their beginning. If this raises, nothing has changed.
        `accepts_tokens` None: the `tokens` port decides.
        """
        by_name = {target.name: target for target in targets}
        missing = {route.upstream for route in routes} | {name for _, name in services.upstreams}
        missing -= {""}  # on a route of services, each service has its own upstream
        configured = ConfiguredModels(models, self._ports.directory.models)
        missing |= {target.upstream for model in models for target in model.targets}
        if missing - by_name.keys():
            raise StartError(f"No upstream is configured by the name {min(missing - by_name.keys())}.")
        limited = [target.name for target in targets if target.capacity is not None]
        if self.limiter is None and limited:
            raise StartError(f"upstreams.{limited[0]}.capacity: the feature `capacity` is not installed")
        ports = self._ports
        own: dict[str, Answerer] = {route.path: answerer for route, answerer in ports.answers.items()}
        lasting: dict[str, Answerer] = {route.path: at_collection for route in routes if is_lasting(route)}
        bindings = WorkerBindings(tuple(routes), by_name, services, ports.directory, ports.log, configured)
        router = HeadRouter((*ports.answers, *routes), by_name, bindings, limits)
        peppers = (self._pepper, *ports.earlier_peppers)
        tokens = ports.tokens.accepts if accepts_tokens is None else accepts_tokens
        heads = HeadReader(
            router, self._pepper, limits, traced=ports.tracer is not None,
            cors=Cors(origins) if origins else None, tokens=tokens, earlier=peppers[1:], pool=ports.caches,
        )  # fmt: skip
        digests = {uri: key_digests(key.encode(), peppers) for uri, key in workloads}
        upstreams: dict[str, Upstream] = {}
        for name, target in by_name.items():
            there = self._upstreams.get(name)
            same = there is not None and there.target == target and limits == self.limits
            if not same or there is None:
                there = Upstream(
                    target, self.clock, self.turns, limits, ports.tally, self._pepper, ports.log,
                    ports.look_up, None if target.capacity is None else self.limiter,
                )  # fmt: skip
                before = self._upstreams.get(name)
                if before is not None and before.target == target:
                    there.signer = before.signer
                    there.contexts, there.listed = before.contexts, before.listed
            upstreams[name] = there
        for name, upstream in self._upstreams.items():
            if upstreams.get(name) is not upstream:
                upstream.leave()
                self._removed_upstreams.append(upstream)
        self.buffers.renew(limits)
        self.sockets.bound_by_share(limits.sockets_max, limits.sockets_share)
        self.sockets_keep.bound_by_share(limits.sockets_kept_bytes_max, limits.sockets_share)
        if self.limiter is not None:
            self.limiter.renew(limits)
        ports.tally.begin_with(upstreams)
        ports.circuit_breaker.bound(limits.upstream_cooling_s_max, ports.seconds())
        self.limits, self.heads, self._upstreams = limits, heads, upstreams
        self._handlers = {**HANDLERS, **ports.handlers, **own, **lasting}
        self._worker = Worker(
            ports,
            limits,
            self.clock,
            upstreams,
            bounds,
            heads,
            self.buffers,
            self.bodies,
            digests,
            configured,
            self.sockets,
            self.sockets_keep,
            self.frames,
            AdmissionPorts(
                ports,
                configured,
                upstreams,
                ports.estimator,
                ports.circuit_breaker,
                ports.tally.budget_refused,
            ),
            self.rename,
        )

    @property
    def bounds(self) -> UsageBounds:
        """The maxima up to which meters believe the usage in an answer."""
        return self._worker.bounds

    def target_of(self, upstream: str) -> UpstreamTarget | None:
        """Return the target of an upstream; None if no upstream of this name is configured."""
        found = self._upstreams.get(upstream)
        return None if found is None else found.target

    def route_of(self, method: str, path: str) -> Route | None:
        """Return the route of a path, or None."""
        return self.heads.router.route_of(method, path)

    @property
    def certificate_ends(self) -> list[tuple[str, float]]:
        """Names of upstreams, and the Unix times at which their certificates expire."""
        upstreams = self._upstreams.items()
        return [(name, end) for name, one in upstreams if (end := one.certificate_end) is not None]

    def signers(self) -> list[tuple[str, CloudSigner]]:
        """Return the signers of requests to upstreams, by upstream name."""
        return [
            (name, upstream.signer)
            for name, upstream in self._upstreams.items()
            if upstream.signer is not None
        ]

    def listed(self) -> list[Upstream]:
        """Return the upstreams whose lists of models are read."""
        return [upstream for upstream in self._upstreams.values() if upstream.listed]

    def snapshot(self) -> dict[str, object]:
        rows: list[tuple[str, str, int]] = []
        for name, upstream in self._upstreams.items():
            idle = upstream.idle_connections
            rows += (name, "busy", upstream.connections - idle), (name, "idle", idle)
        return {
            "requests_in_flight": self.calls,
            "client_connections": len(self._connections),
            "upstream_connections_open": rows,
            **({} if self.limiter is None else self.limiter.snapshot()),
            "upstream_credentials_missing": [
                (name, int(not one.is_ready(time.time()))) for name, one in self.signers()
            ],
        }

    @property
    def calls(self) -> int:
        serving = sum(connection.exchange is not None for connection in self._connections)
        return serving + len(self._orphans)

    def serves_since(self, moment: float) -> bool:
        """Return whether a request that began at `moment` or earlier is still in progress."""
        exchanges = [*(connection.exchange for connection in self._connections), *self._orphans]
        return any(exchange is not None and exchange.started <= moment for exchange in exchanges)

    async def start(
        self,
        own: Sequence[socket.socket],
        others: Sequence[socket.socket] = (),
        wrapped: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None,
    ) -> None:
        """Start accepting clients at this worker's `own` sockets.

        Clients that wait at the sockets of `others`, which are other workers, are accepted if those are busy.
        `wrapped` adds TLS to the protocol factory.
        """

        def plain() -> ClientConnection:
            return ClientConnection(self)

        for one in (*own, *others):
            # Maximum of unsent bytes in the kernel for a slow client; accepted sockets inherit it.
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.limits.client_unsent_bytes_max)
        self._listening = await listen(plain if wrapped is None else wrapped(plain), own, others)
        self.clock.start()

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let calls end within `grace_s` seconds, then close everything."""
        self.draining = True
        if not await self._stopping.run(grace_s, self.limits, self._shut_port):
            self._ports.log("drain_incomplete", calls=self.calls, level="warning")
        if self.limiter is not None:
            await self.limiter.finish()
        for upstream in [*self._upstreams.values(), *self._removed_upstreams]:
            upstream.close()
        self.clock.stop()

    def _shut_port(self) -> None:
        if self._listening is not None:
            self._listening.close()

    # the interface for connections

    def opened(self, connection: ClientConnection) -> bool:
        """Count a new connection; return False and refuse it if there are too many."""
        self._connections.add(connection)
        limits, there = self.limits, len(self._connections)
        if there <= limits.connections_max and not self._stopping.closing:
            return True
        self._ports.tally.connections_refused += 1
        if there <= limits.connections_max + limits.turned_away_max:
            connection.turn_away(Overloaded(retry_after_s=1))
        else:
            connection.transport.abort()
        return False

    def closed(self, connection: ClientConnection) -> None:
        """Remove a closed connection; its call may still be drained and charged."""
        self._connections.discard(connection)
        if connection.exchange is not None:
            self._orphans.add(connection.exchange)
        else:
            self._stopping.changed()

    def parted(self, connection: ClientConnection) -> None:
        """Add its exchange to the orphans: the client has an answer, and the upstream's is read on."""
        if connection.exchange is not None:
            self._orphans.add(connection.exchange)

    def exchange(self, connection: ClientConnection, head: CallHead) -> Exchange:
        """Create the exchange of a request, before its handler starts."""
        now = self._ports.seconds()
        return Exchange(connection, head, self._ids.next_id(now), now, self._worker, self._record_end)

    def rename(self, before: str, request_id: str = "") -> str:
        """Return the id of a request instead of the one `before`: `request_id`, or a new one if that is empty."""
        return request_id or self._ids.next_id(self._ports.seconds())

    def tell(self, exchange: Exchange) -> None:
        routed = exchange.head.routed
        handle = self._open_socket if routed.opens is not None else self._handlers.get(routed.label, proxy)
        exchange.tell(handle(exchange), given_up)

    def _record_end(self, exchange: Exchange, error: BaseException | None) -> None:
        """Record an ended request in the metrics and logs.

        After an unexpected `error`, answer the client, or break off an answer that has begun.
        """
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
        attempt = exchange.attempt
        upstream = attempt.ended - attempt.started_s if attempt.ended else 0.0
        tally.request(exchange.head.routed.label, exchange.status, exchange.reason)
        tally.took(took, upstream, attempt.name)
        if exchange.gone:
            tally.client_disconnects += exchange.answered is None
            self._orphans.discard(exchange)
            self._stopping.changed()
        if ports.access_log:
            ports.log("request", **accessed(exchange, took, upstream))

    def _check(self, now: float) -> None:
        """Check deadlines, idle connections, and holds of long calls. The clock calls this at each tick."""
        watched = now - self.limits.watch_after_s
        for connection in list(self._connections):
            if connection.deadline < now:
                connection.expire()
            if connection.exchange is not None:
                connection.exchange.check(now, watched)
        for exchange in list(self._orphans):
            exchange.check(now, watched)
        for upstream in [*self._upstreams.values(), *self._removed_upstreams]:
            upstream.check(now)
        if self._removed_upstreams:  # a removed upstream is dropped after its last call
            self._removed_upstreams = [
                upstream for upstream in self._removed_upstreams if upstream.connections
            ]
