"""A small TCP balancer, as a Service is one: each new connection goes to one of those that are ready.

What is connected stays where it is until one of its ends leaves, whatever the list says meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

HOST = "127.0.0.1"


class Balancer:
    """Its `port` stays the same; `ready` are ports of this machine, changed by whoever rolls out."""

    def __init__(self) -> None:
        self.ready: list[int] = []
        self.port = 0
        self.joining: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take connections meanwhile."""
        server = await asyncio.get_running_loop().create_server(lambda: _Front(self), HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()


class _Side(asyncio.Protocol):
    """One end: what comes of it goes to the other, at that one's speed, and so does its end."""

    transport: Any
    other: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.other.write(data)

    def eof_received(self) -> bool:
        if self.other is not None and not self.other.is_closing():
            self.other.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            self.other.close() if error is None else self.other.abort()

    def pause_writing(self) -> None:
        self.other.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.is_closing():
            self.other.resume_reading()


class _Front(_Side):
    """A client's end: nothing of it is read until it has a gateway."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        joining = asyncio.create_task(self._join())
        self._balancer.joining.add(joining)
        joining.add_done_callback(self._balancer.joining.discard)

    async def _join(self) -> None:
        back = _Side()
        back.other = self.transport
        port = random.choice(self._balancer.ready)
        try:
            self.other, _ = await asyncio.get_running_loop().create_connection(lambda: back, HOST, port)
        except OSError:
            self.transport.abort()
            return
        if self.transport.is_closing():
            self.other.close()
        else:
            self.transport.resume_reading()
