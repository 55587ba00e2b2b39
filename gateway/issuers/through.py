"""A socket to an issuer through a proxy: `CONNECT`, and TLS with the issuer inside, verified by its own name.

It waits, so a thread runs it. The socket to the proxy stays what it is, so that it can be broken off at any
time, and so that a proxy may speak TLS itself, which has another TLS inside then.
"""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from gateway.core.upstreams.connect import failed, is_let_through, request
from gateway.core.upstreams.proxies import Proxy
from gateway.files import https_with

T = TypeVar("T")
_CHUNK_BYTES = 65_536


def dialled(proxy: Proxy, within_s: float) -> socket.socket:
    """A connection to the proxy, over TLS where it speaks any."""
    try:
        context = https_with(proxy.ca_file) if proxy.secured else None
        plain = socket.create_connection((proxy.host, proxy.port), within_s)
        if context is None:
            return plain
        try:
            return context.wrap_socket(plain, server_hostname=proxy.host)
        except BaseException:
            plain.close()
            raise
    except OSError as error:
        raise failed(proxy, str(error)) from error


def let_through(proxy: Proxy, sock: socket.socket, host: str, port: int) -> None:
    """Ask the proxy to lead to a host; ProxyFailed where it does not."""
    sock.sendall(request(proxy, host, port))
    answer = b""
    while not is_let_through(proxy, answer):
        more = sock.recv(_CHUNK_BYTES)
        if not more:
            raise failed(proxy, "it closed the connection without an answer")
        answer += more


def inside(sock: socket.socket, context: ssl.SSLContext | None, host: str) -> Any:
    """What a connection of `http.client` speaks by: with the issuer, over TLS where there is a context."""
    return sock if context is None else Inside(sock, context, host)


class Inside(io.RawIOBase):
    """TLS through what another socket passes on: as much of a socket as `http.client` asks for."""

    def __init__(self, outer: socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__()
        self._outer, self._in, self._out = outer, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._done(self._tls.do_handshake)

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            left = left[self._done(partial(self._tls.write, left)) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """What is read from it; `mode` is for reading bytes."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; none at the end, however it came."""
        try:
            found = self._done(partial(self._tls.read, len(buffer)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Whoever dialled closes: an answer may be read on when its connection is said to be over."""

    def _done(self, step: Callable[[], T]) -> T:
        """Do what may want bytes of the other side, and pass on what it says."""
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                self._outer.sendall(self._out.read())
                more = self._outer.recv(_CHUNK_BYTES)
                if more:
                    self._in.write(more)
                else:
                    self._in.write_eof()
                continue
            self._outer.sendall(self._out.read())
            return found
