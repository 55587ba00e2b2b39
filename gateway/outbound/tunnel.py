"""Connections to an upstream through a proxy: `CONNECT`, its answer, then TLS with the upstream inside.

The proxy learns the upstream's host and port, and resolves its name; the upstream's certificate and name are
verified as usual. After the proxy's positive answer all bytes are the upstream's. A failure before that is
the proxy's.
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

# Causes of failed connections, by the number of the system's error.

_NUMBERS = {
    ECONNREFUSED: REFUSED, ECONNRESET: RESET, EHOSTUNREACH: UNROUTABLE, ENETUNREACH: UNROUTABLE,
    ETIMEDOUT: CONNECT_TIMEOUT,
}  # fmt: skip
# An error about several addresses has the numbers only in its text.
_SAID = re.compile(r"\[Errno (\d+)\]")


def cause_of(error: Exception) -> tuple[str, str]:
    """Return the cause of a failed connection as a label for metrics, and the system's message."""
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
    """One connection to a proxy that becomes a connection to the upstream.

    `context` is for TLS with the proxy; `is_open` is True after the proxy's positive answer.
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
        """Connect a protocol to the upstream through the proxy; return its transport and the protocol.

        With a `context` the connection uses TLS, which verifies the host's `name`. `where` are arguments for
        asyncio: a socket connected to the proxy, or the proxy's host and port. Raises OSError.
        """
        loop = asyncio.get_running_loop()
        if self._context is not None:
            where |= {"ssl": self._context, "server_hostname": self._proxy.host}
        try:
            await self._await_answer(loop, where)
            return await self._handed_over(loop, protocol, context, name), protocol
        except BaseException:
            if self._transport is not None:
                self._transport.abort()
            raise

    async def _await_answer(self, loop: asyncio.AbstractEventLoop, where: dict[str, Any]) -> None:
        """Wait for the proxy's answer; raise `ProxyFailed` if it refuses."""
        self._answered = loop.create_future()
        await loop.create_connection(lambda: self, **where)
        failure = await self._answered
        if failure is not None:
            raise failure
        self.is_open = True

    async def _handed_over(
        self, loop: asyncio.AbstractEventLoop, protocol: Any, context: ssl.SSLContext | None, name: str | None
    ) -> asyncio.Transport:
        """Connect the upstream's protocol to the open tunnel, with TLS if there is a `context`.

        Return the new transport. The tunnel itself has read no byte of the upstream.
        """
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
        """Return an error of the connection as `ProxyFailed` if the proxy caused it, otherwise unchanged."""
        if self.is_open or isinstance(error, ProxyFailed):
            return error
        return failed(self._proxy, cause_of(error)[1])

    @property
    def late(self) -> str:
        """The message of a timeout that the proxy caused, because it did not answer; empty if it did."""
        return "" if self.is_open else f"the proxy {self._proxy} did not let us through in time"

    # asyncio.Protocol, until the proxy has answered

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Read the proxy's answer; stop reading after it."""
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
        """Fail the tunnel, if the proxy closed the connection before it was open."""
        self._end(failed(self._proxy, "it closed the connection without an answer"))

    def _end(self, failure: ProxyFailed | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(failure)


async def tunnelled(
    proxy: Proxy, place: tuple[str, int], protocol: P, context: ssl.SSLContext | None, name: str | None
) -> P:
    """Connect a protocol through a proxy to the host and port `place`, and return the protocol.

    With a `context` the connection uses TLS, which verifies the host's `name`. Raises OSError, or
    `ProxyFailed` if the proxy caused the failure.
    """
    tunnel = Tunnel(proxy, tls_with(proxy), *place)
    try:
        await tunnel.through(protocol, context, name, host=proxy.host, port=proxy.port)
    except OSError as error:
        raise tunnel.blamed(error) from error
    return protocol


def tls_with(proxy: Proxy | None) -> ssl.SSLContext | None:
    """Return the TLS context for connecting to a proxy; None if the proxy is reached without TLS."""
    if proxy is None or not proxy.secured:
        return None
    return https_with(proxy.ca_file)
