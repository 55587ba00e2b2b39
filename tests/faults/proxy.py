"""A TCP proxy that misbehaves on demand, between any two parts.

It knows bytes, not protocols. Every switch may be turned while connections are open: from the
next bytes on it holds for all of them. What a black hole or a delay holds back is not lost, as
in a network that heals; what a cut or a reset takes with it is.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

CHUNK_BYTES = 65_536
LINGER_RESET = struct.pack("ii", 1, 0)
CONNECT_S_MAX, ENDED_S_MAX = 5.0, 10.0


class Way(Enum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


@dataclass(slots=True)
class Trap:
    """Springs once: on the `nth` time `pattern` comes by, or once `after_bytes` have passed since it was set.

    Bytes and patterns of all connections count, since each may be short. `passes` says whether the bytes
    that spring it still go through. `then` is called at that moment; unless `cuts` is false the connection
    is cut behind it, both ways.
    """

    way: Way
    pattern: bytes = b""
    nth: int = 1
    after_bytes: int = 0
    passes: bool = False
    cuts: bool = True
    then: Callable[[], None] | None = None
    sprung: asyncio.Event = field(default_factory=asyncio.Event)


class _Channel:
    """One client connection and its connection to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, host: str) -> None:
        self.client, self.server, self.host = client, server, host
        self.tail = {Way.TO_SERVER: b"", Way.TO_CLIENT: b""}

    def cut(self, way: Way) -> None:
        """Reset where the bytes came from; where they went they still arrive, and then the end."""
        going, coming = (self.server, self.client) if way is Way.TO_SERVER else (self.client, self.server)
        going.close()
        self.reset(coming)

    def reset(self, *writers: asyncio.StreamWriter) -> None:
        """End both sides at once, so that each sees a reset."""
        for writer in writers or (self.client, self.server):
            raw = writer.get_extra_info("socket")
            if raw is not None and not writer.transport.is_closing():
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            writer.transport.abort()


class Proxy:
    """Listens on loopback and passes bytes to `host:port`.

    `latency_s` delays every piece, `slice_bytes` passes at most so many at once, `black_hole`
    holds everything back, `hold_back` what is of some clients' addresses, `refuses` resets new connections.
    `point_to` changes where new connections go: one address before and after a failover.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.port = 0
        self.latency_s = 0.0
        self.slice_bytes = 0
        self.refuses = False
        self.connections = 0
        self.traps: list[Trap] = []
        self._held: dict[str, asyncio.Event] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._channels: set[_Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on any free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset what is open."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ENDED_S_MAX)

    @property
    def open(self) -> int:
        """Connections that are open on both sides."""
        return len(self._channels)

    @property
    def black_hole(self) -> bool:
        """Whether nothing passes just now."""
        return not self._open.is_set()

    @black_hole.setter
    def black_hole(self, closed: bool) -> None:
        if closed:
            self._open.clear()
        else:
            self._open.set()

    def hold_back(self, *hosts: str) -> None:
        """Let nothing pass between the server and clients that come from these addresses."""
        for host in hosts:
            self._held.setdefault(host, asyncio.Event())

    def let_go(self) -> None:
        """Let everybody's pass again."""
        for event in self._held.values():
            event.set()
        self._held.clear()

    async def _passes(self, host: str) -> None:
        await self._open.wait()
        if (held := self._held.get(host)) is not None:
            await held.wait()

    def point_to(self, port: int) -> None:
        """New connections go there; open ones are reset."""
        self.target = (self.target[0], port)
        self.reset()

    def reset(self) -> None:
        """Reset every open connection."""
        for channel in list(self._channels):
            channel.reset()

    def set_trap(self, trap: Trap) -> Trap:
        """Watch for it on every connection until it springs."""
        self.traps.append(trap)
        return trap

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host = str((writer.get_extra_info("peername") or ("",))[0])  # who has left already has none
        channel, task = None, cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        try:
            await self._passes(host)
            async with asyncio.timeout(CONNECT_S_MAX):
                if self.refuses:
                    raise ConnectionRefusedError
                other, to_server = await asyncio.open_connection(*self.target)
            channel = _Channel(writer, to_server, host)
            self._channels.add(channel)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(channel, reader, to_server, Way.TO_SERVER))
                both.create_task(self._pump(channel, other, writer, Way.TO_CLIENT))
        except (OSError, TimeoutError, BaseExceptionGroup, RuntimeError, asyncio.CancelledError):
            # RuntimeError is uvloop's for a closed one; who cancels is `stop`, and asyncio would report it.
            (channel or _Channel(writer, writer, host)).reset()
        finally:
            self._tasks.discard(task)
            self._channels.discard(channel)

    async def _pump(
        self, channel: _Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            await self._passes(channel.host)
            allowed, trap = self._sprung(channel, data, way)
            await self._write(writer, data[:allowed])
            if trap is not None:
                trap.sprung.set()
                if trap.then is not None:
                    trap.then()
                if trap.cuts:
                    channel.cut(way)
                    return
                await self._write(writer, data[allowed:])
        if writer.can_write_eof():
            writer.write_eof()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        step = self.slice_bytes or len(data) or 1
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            if self.slice_bytes:
                await asyncio.sleep(0)

    def _sprung(self, channel: _Channel, data: bytes, way: Way) -> tuple[int, Trap | None]:
        """How many of these bytes pass before a trap springs, and which one does."""
        before = channel.tail[way]
        seen = before + data
        channel.tail[way] = seen[-256:]
        for trap in list(self.traps):
            if trap.way is not way:
                continue
            if not trap.pattern:
                if len(data) >= trap.after_bytes:
                    self.traps.remove(trap)
                    return trap.after_bytes, trap
                trap.after_bytes -= len(data)
                continue
            at = seen.find(trap.pattern, max(0, len(before) - len(trap.pattern) + 1))
            while at >= 0 and trap.nth > 1:
                trap.nth -= 1
                at = seen.find(trap.pattern, at + 1)
            if at >= 0:
                self.traps.remove(trap)
                # A pattern that passes takes what came with it along: its message may end there.
                return (len(data) if trap.passes else max(0, at - len(before))), trap
        return len(data), None
