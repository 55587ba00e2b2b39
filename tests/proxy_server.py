"""A small proxy that lets through by CONNECT: it looks names up by itself, and may be hostile."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Self

LET_THROUGH = b"HTTP/1.1 200 Connection established\r\n\r\n"
HERE = "127.0.0.1"


class ProxyServer:
    """One proxy. `names` are those that it knows, `leads_to` is where all lead.

    `wants` is the Proxy-Authorization it asks for, if any. `says` is what it answers instead, and `endless`
    goes on behind that; `silent` nothing at all; `closes` then. `asked` are the heads of what came.
    """

    def __init__(self, names: Mapping[str, str] | None = None, wants: str = "") -> None:
        self.names, self.wants = dict(names or {}), wants
        self.leads_to: tuple[str, int] | None = None
        self.says: bytes | None = None
        self.endless: bytes = b""
        self.silent = self.closes = False
        self.asked: list[bytes] = []
        self.open = self.port = 0
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> Self:
        """Listen; over TLS where there is a context."""
        self._server = await asyncio.start_server(self._serve, HERE, 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aenter__(self) -> Self:
        """A proxy that listens already is left as it is."""
        return self if self._server is not None else await self.start()

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def stop(self) -> None:
        """Listen no more, and let go of everybody."""
        assert self._server is not None
        self._server.close()
        for serving in list(self._serving):
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def targets(self) -> list[str]:
        """Where it was asked to lead to."""
        return [head.split(b" ")[1].decode() for head in self.asked]

    @contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator[Self]:
        """Serve in a loop of its own, for tests that wait."""
        loop = asyncio.new_event_loop()
        serving = threading.Thread(target=loop.run_forever)
        serving.start()
        try:
            yield asyncio.run_coroutine_threadsafe(self.start(tls), loop).result(60)
        finally:
            asyncio.run_coroutine_threadsafe(self.stop(), loop).result(60)
            loop.call_soon_threadsafe(loop.stop)
            serving.join()
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        if self.silent:
            await reader.read()
        if self.says is not None:
            writer.write(self.says)
            while self.endless:
                writer.write(self.endless)
                await writer.drain()
            if not self.closes:
                await reader.read()
            return
        if self.closes:
            return
        if self.wants and f"uthorization: {self.wants}\r\n".encode() not in head:
            writer.write(b'HTTP/1.1 407 No\r\nproxy-authenticate: Basic realm="x"\r\n\r\n')
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        there = self.leads_to or (self.names.get(host, host.strip("[]")), int(port))
        try:
            theirs, to = await asyncio.open_connection(*there)
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            return
        writer.write(LET_THROUGH)
        async with asyncio.TaskGroup() as both:
            both.create_task(_pour(reader, to))
            both.create_task(_pour(theirs, writer))


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on whatever comes, to its end, and that end."""
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
