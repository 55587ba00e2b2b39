"""A way to an upstream through a proxy: `CONNECT`, its answer, and then TLS with the upstream inside.

The proxy learns the upstream's host and port, and looks its name up; the upstream's certificate and name are
verified as without it. Once the proxy has let us through it is nobody: what it sends is the upstream's. Until
then all that fails is its failure. It may be hostile: what it answers is bounded, read in one way only, and
shown nowhere but for the number of its status.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, TypeVar

from gateway.core.upstreams.proxies import Proxy, authority
from gateway.http.protocol.answer import read_answer_head
from gateway.http.protocol.framing import HEAD_END, Malformed, has_bare_newline
from gateway.http.upstream.causes import ProxyFailed, cause_of

HEAD_BYTES_MAX = 16 * 1024
_ANSWERS = {
    403: "it does not allow that",
    407: "it wants other credentials",
    502: "it cannot reach the upstream",
    503: "it cannot reach the upstream",
    504: "the upstream does not answer it in time",
}

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Tunnel(asyncio.Protocol):
    """One connection to a proxy, which becomes that of its upstream. `context` is for TLS with the proxy.

    `is_open` is whether the proxy has let us through.
    """

    def __init__(self, proxy: Proxy, context: ssl.SSLContext | None, host: str, port: int) -> None:
        self.is_open = False
        self._proxy, self._context, self._to = proxy, context, authority(host, port)
        self._read = b""
        self._transport: Any = None
        self._answered: asyncio.Future[str] | None = None

    async def through(
        self, protocol: P, context: ssl.SSLContext | None, name: str | None, **where: Any
    ) -> tuple[asyncio.Transport, P]:
        """Have a protocol speak with the upstream, over TLS with its name where there is a context.

        `where` is a socket that is connected to the proxy, or its host and port, as asyncio takes them.
        OSError where it cannot.
        """
        loop = asyncio.get_running_loop()
        if self._context is not None:
            where |= {"ssl": self._context, "server_hostname": self._proxy.host}
        try:
            await self._asked(loop, where)
            return await self._handed_over(loop, protocol, context, name), protocol
        except BaseException:
            if self._transport is not None:
                self._transport.abort()
            raise

    async def _asked(self, loop: asyncio.AbstractEventLoop, where: dict[str, Any]) -> None:
        """Wait until the proxy lets us through; ProxyFailed where it does not."""
        self._answered = loop.create_future()
        await loop.create_connection(lambda: self, **where)
        why = await self._answered
        if why:
            raise ProxyFailed(f"the proxy {self._proxy}: {why}")
        self.is_open = True

    async def _handed_over(
        self, loop: asyncio.AbstractEventLoop, protocol: Any, context: ssl.SSLContext | None, name: str | None
    ) -> asyncio.Transport:
        """Nothing is read meanwhile: what comes then is the protocol's."""
        plain: asyncio.Transport = self._transport
        if context is None:
            plain.set_protocol(protocol)
            protocol.connection_made(plain)
            plain.resume_reading()
            return plain
        secured = await loop.start_tls(plain, protocol, context, server_hostname=name)
        if secured is None:
            raise ConnectionResetError("the connection was lost in its handshake")
        protocol.connection_made(secured)
        return secured

    def blamed(self, error: Exception) -> Exception:
        """The error, as one of the proxy's where it is."""
        if self.is_open or isinstance(error, ProxyFailed):
            return error
        return ProxyFailed(f"the proxy {self._proxy}: {cause_of(error)[1]}")

    @property
    def late(self) -> str:
        """What is said of a proxy that has not let us through in time; empty of one that has."""
        return "" if self.is_open else f"the proxy {self._proxy} did not let us through in time"

    # asyncio.Protocol, until the proxy has answered

    def connection_made(self, transport: Any) -> None:
        """Ask."""
        self._transport = transport
        shown = self._proxy.authorization
        fields = f"proxy-authorization: {shown}\r\n" if shown else ""
        transport.write(f"CONNECT {self._to} HTTP/1.1\r\nhost: {self._to}\r\n{fields}\r\n".encode("ascii"))

    def data_received(self, data: bytes) -> None:
        """Read the head of the answer, and nothing behind it: in a tunnel nobody speaks before us."""
        self._read += data
        at = self._read.find(HEAD_END)
        if at < 0 and len(self._read) <= HEAD_BYTES_MAX and not has_bare_newline(self._read):
            return
        self._transport.pause_reading()
        if at < 0 or at + len(HEAD_END) > HEAD_BYTES_MAX:
            self._end(f"no head of an answer within {HEAD_BYTES_MAX} bytes")
            return
        try:
            status = read_answer_head(self._read[: at + len(HEAD_END)]).status
        except Malformed as error:
            self._end(f"its answer is not HTTP: {error}")
            return
        if not 200 <= status < 300:
            why = f": {_ANSWERS[status]}" if status in _ANSWERS else ""
            self._end(f"it answers {status} to CONNECT{why}")
        elif len(self._read) > at + len(HEAD_END):
            self._end("it sends more than the head of an answer")
        else:
            self._end("")

    def connection_lost(self, error: Exception | None) -> None:
        """The proxy has gone."""
        self._end("it closed the connection without an answer")

    def _end(self, why: str) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(why)
