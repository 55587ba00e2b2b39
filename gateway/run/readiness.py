"""Whether something a process depends on answers, told within a bound: a probe never hangs with it.

A flood of questions costs no more than one each second.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gateway.core.model import PARTITIONS
from gateway.core.processes import Found, report, there
from gateway.core.wait import in_task
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from gateway.run.health import CLOCK_OFF_S_MAX, DiskWatch, has_files_left, why
from gateway.settings.settings import Settings
from gateway.telemetry import metrics as tallies

# The operations port of a lone `serve`: health and metrics, for probes and scrapes.
#
# A few lines of HTTP/1.1 of its own: GET only, one answer a connection, small bounded requests.


HEAD_BYTES_MAX = 16_384
REQUEST_MAX_S = 5.0
SILENT_MAX = 64  # connections that have not asked yet
ANSWERS_MAX = 32  # being written at once, /livez apart
BACKLOG = 1_024
# Whether each partition is there and verified: of a cluster the others are served without one.
EVERY_PARTITION = "every_partition"
# Whether what runs goes by the configuration file as it is now.
CONFIGURATION = "configuration"
# Whether there is room on the disks of its directories.
DISK = "disk"
# Whether each process can open more files.
OPEN_FILES = "open_files"
# Whether the clock is that of others.
CLOCK = "clock"
# Findings that keep nobody from being served: calls go on without them, and an alert fires.
TOLD_ALONE = frozenset({CLOCK, CONFIGURATION, DISK, EVERY_PARTITION, OPEN_FILES})
ProtocolFactory = Callable[[], asyncio.Protocol]
REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Ops:
    """What the port answers from.

    `dependencies` says for each dependency by name whether it is there, or why not; `metrics` takes the
    `Accept` field and gives body and content type.
    """

    dependencies: Callable[[], Awaitable[Found]]
    metrics: Callable[[str], tuple[bytes, str]]


async def listen(
    ops: Ops,
    host: str,
    port: int,
    answers_max: int = ANSWERS_MAX,
    *,
    wrapped: Callable[[ProtocolFactory], ProtocolFactory] | None = None,
    given: socket.socket | None = None,
) -> asyncio.Server:
    """Listen, at the socket that was `given` where there is one, and answer until the server is closed.

    `OSError` if the port is taken. `wrapped` puts TLS in front of connections.
    """
    served, loop = OpsConnections(ops, answers_max), asyncio.get_running_loop()

    def plain() -> asyncio.Protocol:
        reader = asyncio.StreamReader(limit=HEAD_BYTES_MAX, loop=loop)
        return asyncio.StreamReaderProtocol(reader, served.connection, loop=loop)

    made: ProtocolFactory = plain if wrapped is None else wrapped(plain)
    if given is not None:
        return await loop.create_server(made, sock=given, backlog=BACKLOG)
    return await loop.create_server(made, host, port, backlog=BACKLOG)


class OpsConnections:
    """The connections of the port. Where too many have not asked yet, the oldest of them gives way.

    A probe asks as soon as it is connected, so it is answered even if others hold connections open;
    `/livez` also where others read their answers slowly.
    """

    def __init__(self, ops: Ops, answers_max: int) -> None:
        self._ops = ops
        self._answers_max = answers_max
        self._silent: dict[asyncio.StreamWriter, None] = {}
        self._answers = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        if len(self._silent) >= SILENT_MAX:
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            oldest.transport.abort()
        self._silent[writer] = None
        try:
            async with asyncio.timeout(REQUEST_MAX_S):
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._silent.pop(writer, None)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self._silent.pop(writer, None)
        if self._answers >= self._answers_max and b" /livez" not in head[:16]:
            return
        self._answers += 1
        try:
            writer.write(await _answer(self._ops, head))
            await writer.drain()
        finally:
            self._answers -= 1


async def _answer(ops: Ops, head: bytes) -> bytes:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    fields = {name.strip().lower(): value for name, _, value in (line.partition(":") for line in lines)}
    status, body, content_type = await _content(ops, method, path, fields.get("accept", "").strip())
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    said = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\n{allow}Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return said.encode() + (b"" if method == "HEAD" else body)


async def _content(ops: Ops, method: str, path: str, accept: str) -> tuple[int, bytes, str]:
    if path not in {"/livez", "/readyz", "/metrics"}:
        return 404, b'{"status":"not found"}', "application/json"
    if method not in {"GET", "HEAD"}:
        return 405, b'{"status":"method not allowed"}', "application/json"
    if path == "/metrics":
        return 200, *ops.metrics(accept)
    found = await ops.dependencies() if path == "/readyz" else {}
    well = all(is_there for name, is_there in there(found).items() if name not in TOLD_ALONE)
    return (200 if well else 503), json.dumps(report(well, found)).encode(), "application/json"


ANSWER_S_MAX = 2.0
FRESH_S = 1.0
T = TypeVar("T")


class Probe:
    """Ask one dependency, once at a time: what is still being asked is asked no second time."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], *, answer_s_max: float = ANSWER_S_MAX) -> None:
        self._ask = ask
        self._answer_s_max = answer_s_max
        self._asking: asyncio.Task[bool] | None = None

    async def answers(self) -> bool:
        """Whether it said yes within the bound; an error is a no."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._told())
        done, _ = await asyncio.wait({self._asking}, timeout=self._answer_s_max)
        return bool(done) and self._asking.result()

    async def _told(self) -> bool:
        try:
            return await self._ask()
        except Exception:  # noqa: BLE001  # whatever it meets, it does not answer
            return False


class CachedLookup(Generic[T]):
    """A recent look-up: callers within `fresh_s` share it, and one at a time looks."""

    def __init__(
        self, look: Callable[[], Awaitable[T]], *, fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._look, self._fresh_s, self._clock = look, fresh_s, clock
        self._turn = asyncio.Lock()
        self._found: tuple[float, T] | None = None

    async def now(self) -> T:
        """The found value; it raises what the look does, and keeps nothing then."""
        async with self._turn:
            if self._found is None or self._clock() - self._found[0] >= self._fresh_s:
                self._found = None
                found = await self._look()
                self._found = self._clock(), found
            return self._found[1]


async def one_answers(wires: Sequence[RedisConnection]) -> bool:
    """Whether Redis answers; of a cluster one primary is enough."""
    asked = [asyncio.create_task(_pinged(wire)) for wire in wires]
    try:
        for each in asyncio.as_completed(asked):
            if await each:
                return True
        return False
    finally:
        for one in asked:
            one.cancel()


async def all_answer(wires: Sequence[RedisConnection]) -> bool:
    """Whether Redis answers; of a cluster each primary."""
    return bool(wires) and all(await asyncio.gather(*map(_pinged, wires)))


async def _pinged(wire: RedisConnection) -> bool:
    with suppress(CountersUnavailable):
        return await in_task(wire.send(encode(b"PING"))) == b"PONG"
    return False


async def of_gateway(settings: Settings, serves: Callable[[], bool], disk: DiskWatch) -> Found:
    """What a lone gateway needs, and whether it is there: Redis by what the workers found themselves.

    `serves`: whether a worker accepts calls. Its port is held by us, so that nobody there would refuse.
    Of a cluster one primary that serves is enough: `every_partition` says whether all of them do. A
    configuration file that is wrong is not used: `configuration` says whether the last one is.
    """
    found = tallies.collect(settings.metrics_dir)
    every = PARTITIONS * found.get("workers", 0)
    away, unverified = (found.get(name, 0) for name in ("partitions_away", "partitions_unverified"))
    refuses = why(dict(found.get("partitions_refusing", ())))
    return {
        "gateway": serves() or "no worker accepts calls",
        "redis": (away < every and found.get("partitions_taking", 1) > 0) or refuses,
        "counters_verified": unverified < every,
        EVERY_PARTITION: every > away + unverified == 0 and (refuses or True),
        CONFIGURATION: not found.get("configuration_stale", 0),
        **of_process(found, disk),
    }


def of_process(snapshot: Mapping[str, Any], disk: DiskWatch) -> Found:
    """Facts of processes and their machine, by their numbers."""
    return {
        DISK: not disk.full or f"the disk of {', '.join(disk.full)} is full",
        OPEN_FILES: has_files_left(snapshot) or "hardly any file is left that a process may open",
        CLOCK: _clock(snapshot.get("clock_offset_seconds", ())),
    }


def _clock(offsets: Iterable[tuple[str, float]]) -> bool | str:
    """Whether our clock is that of others, or by how much it is not."""
    said = [
        f"the clock is {abs(off_s):,.0f} s {'ahead of' if off_s > 0 else 'behind'} that of {name}"
        for name, off_s in offsets
        if abs(off_s) >= CLOCK_OFF_S_MAX
    ]
    return not said or ", ".join(said)
