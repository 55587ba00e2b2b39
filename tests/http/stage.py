"""Both ends of the data plane, to be scripted by a test.

The upstream is a raw socket that says whatever bytes a test wants; h11 reads every byte the
gateway sends it and every byte the gateway sends a client, and an error there fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, cast

import h11

from gateway.calls.ports import CountersPort, ModelSessionsPort, NoModelSessions, ObjectOwnersPort
from gateway.core.accounts.call_facts import CallFacts, read_facts
from gateway.core.accounts.refusals import Refusals
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.routes import ModelRule, Route, ServiceRules, UpstreamTarget
from gateway.core.certificates import TlsFiles
from gateway.core.circuit_breaker import CircuitBreaker
from gateway.core.empty_accounts import EmptyAccounts
from gateway.core.failures import Failures
from gateway.core.http_limits import HttpLimits
from gateway.core.model import Attribution, Caller
from gateway.errors import Refusal
from gateway.http.ports import Answerer, HoldsPort, JobsPort, Ports, Tokens, Tracer, UpstreamLimiter
from gateway.http.server.server import DataPlane
from gateway.http.server.traced import TracedPlane
from gateway.http.tally import Tally
from gateway.http.upstream.dialing import LookUp, by_system
from gateway.run.worker_parts import WorkerParts, merged
from gateway.settings.settings import Settings
from gateway.tls.certificates import Certificates
from gateway.tls.session import TlsGate
from tests.http.fakes import (
    PEPPER,
    ROUTES,
    USAGE_BODY,
    FakeCounters,
    FakeDirectory,
    FakeObjects,
    NoRuns,
    NoTokens,
    answer,
)
from tests.tls_client import open_tls
from tests.waiting import eventually

WITHIN_S = 30.0
# What features make their ports of: none of those that a stage takes asks a server.
_PARTS = WorkerParts(
    settings=Settings(), wires=cast("Any", None), objects=cast("Any", None), settlements=cast("Any", None),
    log=lambda *_, **__: None,
)  # fmt: skip


@dataclass
class Received:
    """One request as an upstream saw it."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def all(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.headers if each == name]


class Close:
    """A step of an upstream's script: close, with a reset where `reset`."""

    def __init__(self, reset: bool = False) -> None:
        self.reset = reset


Step = bytes | float | asyncio.Event | Close
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeUpstream:
    """A server that answers each request by the next script, or by `answer()`.

    Steps: bytes are sent, a number of seconds or an event is waited for, `Close` closes.
    With `expects_cut` a request may break off in its body.
    """

    def __init__(self) -> None:
        self.scripts: list[list[Step]] = []
        self.received: list[Received] = []
        self.bytes_read = 0
        self.connections = 0
        self.open = 0
        self.expects_cut = False
        self.handler: Handler | None = None
        self.errors: list[BaseException] = []
        self.lost = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, host, port, ssl=tls, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            if self.handler is not None:
                await self.handler(reader, writer)
            else:
                await self._requests(reader, writer)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001  # the test's own thread of events reports it
            left = isinstance(error, RuntimeError) and "the handler is closed" in str(error)  # as uvloop says
            if not left and not (self.expects_cut and "peer closed connection" in str(error)):
                self.errors.append(error)
        finally:
            self.open -= 1
            self.lost.set()
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        oracle = h11.Connection(h11.SERVER)
        while (received := await self._request(oracle, reader)) is not None:
            self.received.append(received)
            script = self.scripts.pop(0) if self.scripts else [answer()]
            if not await self._play(script, writer):
                return
            oracle = self._next(oracle)

    @staticmethod
    def _next(oracle: h11.Connection) -> h11.Connection:
        left, _ = oracle.trailing_data
        fresh = h11.Connection(h11.SERVER)
        if left:
            fresh.receive_data(left)
        return fresh

    async def _request(self, oracle: h11.Connection, reader: asyncio.StreamReader) -> Received | None:
        received: Received | None = None
        while True:
            event = oracle.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                self.bytes_read += len(data)
                if not data and received is None and not oracle.trailing_data[0]:
                    return None
                oracle.receive_data(data)
            elif isinstance(event, h11.Request):
                received = Received(event.method, event.target, list(event.headers))
            elif isinstance(event, h11.Data):
                assert received is not None
                received.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return received
            else:
                return None

    async def _play(self, script: list[Step], writer: asyncio.StreamWriter) -> bool:
        for step in script:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Close):
                if step.reset:
                    reset(writer)
                return False
            else:
                await asyncio.sleep(step)
        return True


def reset(writer: asyncio.StreamWriter) -> None:
    """Make the next close a reset."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass
class Answer:
    """One answer as a client saw it; header names in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    complete: bool = True

    def all(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.headers if each == name]

    def one(self, name: bytes) -> bytes:
        (value,) = self.all(name)
        return value

    @property
    def reason(self) -> str:
        return self.one(b"x-tollkeeper-reason").decode()


class Client:
    """A raw client; h11 reads what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._left = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes, method: str = "POST") -> Answer:
        await self.send(data)
        return await self.answer(method)

    async def answer(self, method: str = "POST") -> Answer:
        """Read one answer; `complete` is False where the connection broke in the middle of it."""
        oracle = h11.Connection(h11.CLIENT)
        oracle.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        oracle.send(h11.EndOfMessage())
        if self._left:
            oracle.receive_data(self._left)
        self._left = b""
        interim: list[int] = []
        seen: Answer | None = None
        while True:
            try:
                event = oracle.next_event()
                if event is h11.NEED_DATA:
                    oracle.receive_data(await asyncio.wait_for(self.reader.read(65536), WITHIN_S))
                    continue
            except (h11.RemoteProtocolError, ConnectionError):
                if seen is None:
                    raise
                seen.complete = False
                return seen
            if isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                seen = Answer(event.status_code, list(event.headers), interim=interim)
            elif isinstance(event, h11.Data):
                assert seen is not None
                seen.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert seen is not None
                self._left = oracle.trailing_data[0]
                return seen
            else:
                raise AssertionError(event)  # noqa: TRY004  # a test's failure

    async def until_close(self) -> bytes:
        """All bytes up to the end of the connection, however it ends."""
        received = self._left
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self.reader.read(65536), WITHIN_S):
                received += data
        return received

    async def read_until(self, mark: bytes) -> bytes:
        """Bytes up to and with a mark."""
        return await asyncio.wait_for(self.reader.readuntil(mark), WITHIN_S)

    async def is_closed(self) -> bool:
        """Whether the gateway closes without a further byte."""
        return await self.until_close() == b""

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        reset(self.writer)


@dataclass(frozen=True)
class Tls:
    """What a stage speaks TLS with, and what its clients trust."""

    files: TlsFiles
    context: ssl.SSLContext
    wall: Callable[[], float] = time.time

    def gate(self) -> TlsGate:
        return TlsGate("gateway", Certificates(self.files, "TOLLKEEPER_TLS_"), wall=self.wall)


# How clients of the stages reach them that are made here: without TLS, or with this.
OVER: ContextVar[Tls | None] = ContextVar("OVER", default=None)


class Stage:
    """A data plane between a fake upstream and raw clients."""

    def __init__(self, upstream: FakeUpstream) -> None:
        self.upstream = upstream
        self.directory = FakeDirectory()
        self.tokens: Tokens = NoTokens()
        self.counters = FakeCounters()
        self.objects = FakeObjects()
        self.runs = NoRuns()
        self.stored: ObjectOwnersPort | None = None
        self.callers_holds: HoldsPort | None = None
        self.failures = Failures(time.monotonic, free_max=1_000)
        self.tally = Tally()
        self.refusals = Refusals(time.time)
        self.seconds: Callable[[], float] = time.monotonic
        self.cooling = CircuitBreaker()
        self.empty = EmptyAccounts()
        self.logged: list[tuple[str, dict[str, object]]] = []
        self.usage_refusal: Refusal | None = None
        self.usage_said = USAGE_BODY
        self.plane: DataPlane
        self.gate: TlsGate | None = None
        self.port = 0
        self._clients: list[Client] = []

    def ports(self) -> Ports:
        return Ports(
            self.directory,
            self.counters,
            self.stored or self.objects,
            self.refusals,
            self.tokens,
            Estimator(),
            self.tally,
            self._usage,
            self._log,
            self.failures,
            self.cooling,
            lambda: self.seconds(),  # noqa: PLW0108  # as it is then
            holds=cast("HoldsPort", self.callers_holds),
            empty=self.empty,
            access_log=True,
            handlers=merged(lambda one: one.handlers()),
            **(merged(lambda one: one.ports(_PARTS)) | {"runs": self.runs, "jobs": None, "limiter": None}),
        )

    async def _usage(self, caller: Caller, said: Attribution) -> bytes:
        assert (caller, caller.acts_for(said.user)) == (self.directory.caller, "")
        if self.usage_refusal is not None:
            raise self.usage_refusal
        return self.usage_said

    def _log(self, event: str, /, **facts: object) -> None:
        self.logged.append((event, facts))

    def events(self, name: str) -> list[dict[str, object]]:
        return [facts for event, facts in self.logged if event == name]

    @property
    def connections(self) -> int:
        """Client connections open now."""
        return len(self.plane._connections)

    @property
    def upstream_connections(self) -> int:
        """Upstream connections open or being opened now."""
        plane = self.plane
        return sum(
            upstream.connections for upstream in [*plane._upstreams.values(), *plane._removed_upstreams]
        )

    async def client(self) -> Client:
        tls = OVER.get()
        if tls is None:
            client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22))
        else:
            client = Client(*await open_tls(self.port, tls.context, limit=1 << 22))
        self._clients.append(client)
        return client

    async def ask(self, data: bytes, method: str = "POST") -> Answer:
        """One request on a connection of its own."""
        client = await self.client()
        return await client.ask(data, method)

    def facts(self, number: int = -1) -> CallFacts:
        """Return what is kept of one of the calls that were charged."""
        found = read_facts(self.counters.charges[number].metadata)
        assert found is not None
        return found

    async def settled(self, count: int = 1) -> None:
        """Wait for so many settlements."""
        await eventually(lambda: len(self.counters.settlements) >= count)

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await self.plane.drain(1)
        await self.upstream.stop()
        assert not self.upstream.errors, self.upstream.errors
        assert not self.events("request_failed")
        assert len(self.counters.settlements) <= len(self.counters.holds)
        assert {one.request_id for one in self.counters.settlements} <= {
            one.request_id for one in self.counters.holds
        }
        over = [*self.counters.let_go, *(one for one in self.counters.holds if one.raises)]
        assert {one.request_id for one in self.counters.heads} <= {one.request_id for one in over}
        assert self.plane.buffers.used == self.plane.buffers.heads == 0


@contextlib.asynccontextmanager
async def staged(
    routes: tuple[Route, ...] = ROUTES,
    base_url: str = "",
    headers: tuple[tuple[str, str], ...] = (("authorization", "Bearer upstream-secret"),),
    upstream_tls: ssl.SSLContext | None = None,
    ca_file: str | None = None,
    *,
    tracer: Tracer | None = None,
    services: ServiceRules = ServiceRules(shared="up"),  # noqa: B008  # frozen
    refuses_unpriced: bool = False,
    origins: frozenset[bytes] = frozenset(),
    workloads: tuple[tuple[str, str], ...] = (),
    look_up: LookUp = by_system,
    tokens: Callable[[FakeDirectory], Tokens] = NoTokens,
    earlier_peppers: tuple[bytes, ...] = (),
    stored: ObjectOwnersPort | None = None,
    holds: HoldsPort | None = None,
    jobs: JobsPort | None = None,
    counters: CountersPort | None = None,
    sessions: ModelSessionsPort | None = None,
    others: tuple[UpstreamTarget, ...] = (),
    models: tuple[ModelRule, ...] = (),
    of_target: dict[str, object] | None = None,
    limiter: Callable[..., UpstreamLimiter] | None = None,
    answers: Mapping[Route, Answerer] | None = None,
    **limits: float,
) -> AsyncIterator[Stage]:
    """A stage whose every hold is settled when it closes. `limits` are fields of `HttpLimits`, `stored` and
    `counters` are of a real Redis, `of_target` more fields of its upstream, `others` upstreams beside it.
    """
    upstream = FakeUpstream()
    await upstream.start(upstream_tls)
    stage = Stage(upstream)
    stage.stored, stage.callers_holds = stored, holds
    stage.tokens = tokens(stage.directory)
    url = base_url or f"http{'s' if upstream_tls else ''}://localhost:{upstream.port}"
    target = UpstreamTarget(
        "up", url.replace("localhost", "127.0.0.1") if not upstream_tls else url, headers, ca_file
    )
    target = replace(target, **of_target or {})  # type: ignore[arg-type] # as its fields are
    limits.setdefault("tick_s", 0.01)
    plane_of = DataPlane if tracer is None else TracedPlane
    stage.plane = plane_of(
        replace(
            stage.ports(),
            tracer=tracer,
            refuse_unpriced=refuses_unpriced,
            look_up=look_up,
            earlier_peppers=earlier_peppers,
            limiter=limiter,
            jobs=jobs,
            counters=counters or stage.counters,
            sessions=sessions or NoModelSessions(),
            answers=answers or {},
        ),
        routes,
        [target, *others],
        HttpLimits(**{"quiet_s": 0.0} | limits),  # type: ignore[arg-type] # counts are integers
        PEPPER,
        services,
        origins=origins,
        workloads=workloads,
        models=models,
    )
    tls = OVER.get()
    stage.gate = tls.gate() if tls is not None else None
    there = socket.create_server(("127.0.0.1", 0))
    stage.port = there.getsockname()[1]
    await stage.plane.start([there], wrapped=stage.gate.wrapped if stage.gate is not None else None)
    try:
        yield stage
    finally:
        await stage.close()
