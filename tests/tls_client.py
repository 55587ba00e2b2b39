"""A client that speaks TLS and does what a plain socket does: stops reading, ends its sending alone."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any, cast


class TlsClient(asyncio.Protocol):
    """The protocol of a socket, and the transport of the streams in front of it."""

    def __init__(self, context: ssl.SSLContext, host: str, inner: asyncio.StreamReaderProtocol) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._inner = inner
        self.raw: Any = None
        self.open = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.raw = transport
        self._shake()

    def data_received(self, data: bytes) -> None:
        self._in.write(data)
        if not self.open.done():
            self._shake()
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while self.open.done():
                part = self.tls.read(1 << 16)
                if not part:
                    self._inner.eof_received()
                    break
                self._inner.data_received(part)
        self._flush()

    def eof_received(self) -> bool:
        self._inner.eof_received()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(error or ConnectionResetError("the handshake was broken off"))
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self.tls.write(left[: 1 << 14]) :]
        self._flush()

    def write_eof(self) -> None:
        """Say that nothing more is sent; what comes can still be read."""
        self.say_goodbye()
        self.raw.write_eof()

    def say_goodbye(self) -> None:
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        self._flush()

    def close(self) -> None:
        if self.open.done() and not self.raw.is_closing():
            self.say_goodbye()
        self.raw.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def _shake(self) -> None:
        try:
            self.tls.do_handshake()
            self.open.set_result(None)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.open.set_exception(error)
        self._flush()

    def _flush(self) -> None:
        if self._out.pending and not self.raw.is_closing():
            self.raw.write(self._out.read())


async def open_tls(
    port: int, context: ssl.SSLContext, host: str = "localhost", limit: int = 1 << 16
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and shake hands, as `asyncio.open_connection` does."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    streams = asyncio.StreamReaderProtocol(reader, loop=loop)
    _, client = await loop.create_connection(lambda: TlsClient(context, host, streams), "127.0.0.1", port)
    transport = cast("asyncio.Transport", client)
    streams.connection_made(transport)
    await client.open
    return reader, asyncio.StreamWriter(transport, streams, reader, loop)
