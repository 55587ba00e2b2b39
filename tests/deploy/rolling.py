"""A rolling restart of gateways under load.

Clients know one address, that of a balancer: connections are kept and used again, none is tried twice. A
gateway that is to end is first taken out of the balancer's list, then told.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field

import psycopg

from tests.conftest import free_port
from tests.deploy.balancer import HOST, Balancer
from tests.deploy.deployment import Deployment
from tests.deploy.processes import Process

BODY = {"model": "demo-small", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 16}
USED = 42
STREAM_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
# Until every node has heard that an endpoint is gone; five seconds in a cluster.
UNHEARD_S = 1.0


@dataclass(frozen=True)
class Load:
    """Calls a second by so many clients; streams at once, the pieces of each, and how long between two."""

    rate: float
    clients: int
    streams: int = 8
    pieces: int = 8
    pause_s: float = 0.5


@dataclass
class Outcome:
    """What clients saw: how often each status and each failure, and how long answers took, in seconds.

    `streams` were whole, the others `cut` so; all of it took so many `seconds`. Once it is `over` no client
    calls again.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    seconds: float = 0.0
    over: bool = False

    @property
    def requests(self) -> int:
        """Calls, streams apart."""
        return sum(self.statuses.values()) + sum(self.failures.values())


class Gateways:
    """Gateways behind a balancer."""

    def __init__(self, deployment: Deployment, count: int) -> None:
        self.deployment = deployment
        self.ports = [(free_port(), free_port()) for _ in range(count)]
        self.processes: list[Process] = [deployment.serve(*ports) for ports in self.ports]
        self.balancer = Balancer()
        self.balancer.ready = [port for port, _ in self.ports]

    async def replace(self, index: int) -> None:
        """What a rollout does to one: another is started, the old one leaves the list and is told to end."""
        old_port, _ = self.ports[index]
        old = self.processes[index]
        ports = (free_port(), free_port())
        self.processes[index] = await asyncio.to_thread(self.deployment.serve, *ports)
        self.ports[index] = ports
        self.balancer.ready.append(ports[0])
        self.balancer.ready.remove(old_port)
        await asyncio.sleep(UNHEARD_S)
        assert await asyncio.to_thread(old.stop) == 0


class Client:
    """One connection that is kept, as a pool would: when it is closed the next request opens another."""

    def __init__(self, gateways: Gateways, key: str, outcome: Outcome) -> None:
        self._gateways = gateways
        self._outcome = outcome
        body = json.dumps(BODY).encode()
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
            b"content-type: application/json\r\nx-demo-usage: 30,12\r\ncontent-length: %d\r\n\r\n%b"
            % (key.encode(), len(body), body)
        )
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(self) -> None:
        """One request, never sent twice."""
        began = time.monotonic()
        try:
            if self._reader is None or self._writer is None or self._reader.at_eof():
                self.close()
                port = self._gateways.balancer.port
                self._reader, self._writer = await asyncio.open_connection(HOST, port)
            self._writer.write(self._request)
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self._outcome.failures[type(error).__name__] += 1
            self.close()
            return
        self._outcome.statuses[int(head[9:12])] += 1
        self._outcome.took.append(time.monotonic() - began)
        if b"\r\nconnection: close\r\n" in head:
            self.close()

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def streaming(gateways: Gateways, key: str, load: Load, outcome: Outcome) -> None:
    """One long stream behind the other, each on a connection of its own, until it is over."""
    body = json.dumps(BODY | {"stream": True}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\nx-demo-usage: 30,12\r\nx-demo-words: %d\r\nx-demo-pause-s: %g\r\n"
        b"content-length: %d\r\n\r\n%b" % (key.encode(), load.pieces, load.pause_s, len(body), body)
    )
    while not outcome.over:
        reader, writer = await asyncio.open_connection(HOST, gateways.balancer.port)
        try:
            writer.write(request)
            said = await reader.readuntil(b"\r\n\r\n")
            while not said.endswith(STREAM_END) and (more := await reader.read(65_536)):
                said += more
            if said.startswith(b"HTTP/1.1 200") and said.endswith(STREAM_END):
                outcome.streams += 1
            else:
                outcome.cut[f"{said[:15]!r} … {said[-80:]!r}"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome.cut[type(error).__name__] += 1
        finally:
            writer.close()


async def loaded(gateways: Gateways, key: str, load: Load, outcome: Outcome) -> None:
    """Requests at a steady rate over all clients together, until it is over; the last ones are answered."""

    async def one(number: int) -> None:
        client = Client(gateways, key, outcome)
        interval_s = load.clients / load.rate
        due = time.monotonic() + interval_s * number / load.clients
        try:
            while not outcome.over:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await client.call()
                due = max(due + interval_s, time.monotonic())
        finally:
            client.close()

    await asyncio.gather(*(one(number) for number in range(load.clients)))


async def roll(gateways: Gateways, keys: tuple[str, str], load: Load, rounds: int = 1) -> Outcome:
    """Replace every gateway, one after the other, while clients go on; the second key is that of streams."""
    outcome, began = Outcome(), time.monotonic()
    key, streaming_key = keys
    async with gateways.balancer.listening(), asyncio.TaskGroup() as going:
        calls = going.create_task(loaded(gateways, key, load, outcome))
        streams = [
            going.create_task(streaming(gateways, streaming_key, load, outcome)) for _ in range(load.streams)
        ]
        await asyncio.sleep(1)
        for _ in range(rounds):
            for index in range(len(gateways.ports)):
                await gateways.replace(index)
        await asyncio.sleep(1)
        outcome.seconds, outcome.over = time.monotonic() - began, True
        await calls
        for stream in streams:
            stream.cancel()
    return outcome


@dataclass(frozen=True)
class Charged:
    """A tenant's charged calls in PostgreSQL: rows, different calls, tokens."""

    rows: int
    calls: int
    tokens: int

    @classmethod
    def of(cls, database: str, tenant: int) -> Charged:
        """What there is now."""
        rows = "select count(*), count(distinct request_id), coalesce(sum(amount), 0) from token_ledger"
        where = " where tenant_id = %s and transaction_type = 'consume'"
        with psycopg.connect(database) as connection:
            found = connection.execute(rows + where, (tenant,)).fetchone()
        assert found is not None
        return cls(*map(int, found))
