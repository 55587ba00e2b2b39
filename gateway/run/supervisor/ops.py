"""The operations port of a lone `serve`: health and metrics, for probes and scrapes.

A few lines of HTTP/1.1 of its own: GET only, one answer a connection, small bounded requests.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.core.readiness import Found, report, there

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
# What is told and keeps nobody from being served: calls go on without it, and an alert fires.
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
    served, loop = Served(ops, answers_max), asyncio.get_running_loop()

    def plain() -> asyncio.Protocol:
        reader = asyncio.StreamReader(limit=HEAD_BYTES_MAX, loop=loop)
        return asyncio.StreamReaderProtocol(reader, served.connection, loop=loop)

    made: ProtocolFactory = plain if wrapped is None else wrapped(plain)
    if given is not None:
        return await loop.create_server(made, sock=given, backlog=BACKLOG)
    return await loop.create_server(made, host, port, backlog=BACKLOG)


class Served:
    """The connections of the port. Where too many have not asked yet, the oldest of them gives way.

    A probe asks as soon as it is connected, so it is answered whoever holds connections open; `/livez`
    also where others read their answers slowly.
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
