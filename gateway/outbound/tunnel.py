"""A way to an upstream through a proxy: `CONNECT`, its answer, and then TLS with the upstream inside.

The proxy learns the upstream's host and port, and looks its name up; the upstream's certificate and name are
verified as without it. Once the proxy has let us through it is nobody: what it sends is the upstream's. Until
then all that fails is its failure.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from errno import ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT, errorcode
from typing import Any, TypeVar

from gateway.core.circuit_breaker import (
    CONNECT_TIMEOUT,
    OTHER,
    PROXY,
    REFUSED,
    RESET,
    TLS,
    UNRESOLVED,
    UNROUTABLE,
)
from gateway.core.network import Proxy, ProxyFailed, failed, is_let_through, request
from gateway.files import https_with

# What an error of the machine's says of why a connection was not made.

_NUMBERS = {
    ECONNREFUSED: REFUSED, ECONNRESET: RESET, EHOSTUNREACH: UNROUTABLE, ENETUNREACH: UNROUTABLE,
    ETIMEDOUT: CONNECT_TIMEOUT,
}  # fmt: skip
# An error of several addresses has the numbers in its text alone.
_SAID = re.compile(r"\[Errno (\d+)\]")


def cause_of(error: Exception) -> tuple[str, str]:
    """Return the cause of a failed connection, and the machine's words for it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLS, error.verify_message or "certificate not trusted"
    if isinstance(error, ssl.SSLError):
        return TLS, getattr(error, "reason", None) or str(error)
    if isinstance(error, socket.gaierror | UnicodeError):
        return UNRESOLVED, f"the name cannot be resolved: {getattr(error, 'strerror', None) or error}"
    if isinstance(error, ProxyFailed):
        return PROXY, str(error)
    number = getattr(error, "errno", None)
    if number is None and (said := _SAID.search(str(error))):
        number = int(said[1])
    if number is None:
        return OTHER, str(error)
    return _NUMBERS.get(number, OTHER), errorcode.get(number, str(error))


P = TypeVar("P", bound=asyncio.BaseProtocol)


class Tunnel(asyncio.Protocol):
    """One connection to a proxy, which becomes that of its upstream. `context` is for TLS with the proxy.

    `is_open` is whether the proxy has let us through.
    """

    def __init__(self, proxy: Proxy, context: ssl.SSLContext | None, host: str, port: int) -> None:
        self.is_open = False
        self._proxy, self._context, self._request = proxy, context, request(proxy, host, port)
        self._read = b""
        self._transport: Any = None
        self._answered: asyncio.Future[ProxyFailed | None] | None = None

    async def through(
        self, protocol: P, context: ssl.SSLContext | None, name: str | None, **where: Any
    ) -> tuple[asyncio.Transport, P]:
        """Connect a protocol with the upstream, over TLS with its name where there is a context.

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
        failure = await self._answered
        if failure is not None:
            raise failure
        self.is_open = True

    async def _handed_over(
        self, loop: asyncio.AbstractEventLoop, protocol: Any, context: ssl.SSLContext | None, name: str | None
    ) -> asyncio.Transport:
        """Hand the socket to its protocol, without a read in between."""
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
        """Return the error, as one of the proxy's where it is."""
        if self.is_open or isinstance(error, ProxyFailed):
            return error
        return failed(self._proxy, cause_of(error)[1])

    @property
    def late(self) -> str:
        """The words on a proxy that has not let us through in time; empty of one that has."""
        return "" if self.is_open else f"the proxy {self._proxy} did not let us through in time"

    # asyncio.Protocol, until the proxy has answered

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Read the answer; nothing more is read once it is known."""
        self._read += data
        failure: ProxyFailed | None = None
        try:
            if not is_let_through(self._proxy, self._read):
                return
        except ProxyFailed as error:
            failure = error
        self._transport.pause_reading()
        self._end(failure)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the tunnel: the proxy closed the connection."""
        self._end(failed(self._proxy, "it closed the connection without an answer"))

    def _end(self, failure: ProxyFailed | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(failure)


async def tunnelled(
    proxy: Proxy, place: tuple[str, int], protocol: P, context: ssl.SSLContext | None, name: str | None
) -> P:
    """Connect a protocol with a place through a proxy, over TLS with this name where there is a context.

    OSError where it cannot: one of the proxy's says so.
    """
    tunnel = Tunnel(proxy, tls_with(proxy), *place)
    try:
        await tunnel.through(protocol, context, name, host=proxy.host, port=proxy.port)
    except OSError as error:
        raise tunnel.blamed(error) from error
    return protocol


def tls_with(proxy: Proxy | None) -> ssl.SSLContext | None:
    """Return the TLS context for a proxy; None for a proxy without TLS."""
    if proxy is None or not proxy.secured:
        return None
    return https_with(proxy.ca_file)
