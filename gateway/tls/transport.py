"""What a protocol over TLS asks of its transport: bytes are encrypted, all else is asked of the socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from gateway.core.certificate import WORKLOAD

# A record of TLS is never larger, so neither are the buffers of one connection for long.
RECORD_BYTES_MAX = 16 * 1024
NEVER = float("inf")


class TlsTransport:
    """The side of a connection that the protocol `inner` sees. It is open once hands are shaken."""

    __slots__ = ("_ends", "_half", "_inner", "_open", "_outgoing", "_tls", "_transport", "_uri", "_wall")

    def __init__(
        self,
        inner: asyncio.Protocol,
        tls: ssl.SSLObject,
        outgoing: ssl.MemoryBIO,
        wall: Callable[[], float],
    ) -> None:
        self._inner, self._tls, self._outgoing = inner, tls, outgoing
        self._transport: Any = None
        self._open = self._half = False
        # Whose connection it is: the one URI of the client's certificate, and the end of that, Unix time.
        self._uri, self._ends, self._wall = "", NEVER, wall

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if not self._open or self._half:
            return
        tls, outgoing, left = self._tls, self._outgoing, len(data)
        try:
            if left <= RECORD_BYTES_MAX:
                if left:
                    tls.write(data)
            else:
                view = memoryview(data)
                while view:
                    view = view[tls.write(view[:RECORD_BYTES_MAX]) :]
        except ssl.SSLError:
            self._transport.abort()
            return
        self._transport.write(outgoing.read())

    def writelines(self, lines: list[bytes]) -> None:
        """Encrypt and send all of these."""
        self.write(b"".join(lines))

    def can_write_eof(self) -> bool:
        """Sending may end before receiving does."""
        return True

    def write_eof(self) -> None:
        """Say that nothing more is sent. What comes from now on is handed on as it came, to be counted."""
        if self._open and not self._half:
            self._say_goodbye()
            self._half = True
            self._transport.write_eof()

    def close(self) -> None:
        """Say goodbye, send what waits, and close the socket."""
        if self._open:
            if not self._half and not self._transport.is_closing():
                self._say_goodbye()
            self._half = True
        self._transport.close()

    def abort(self) -> None:
        """Close the socket at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether the socket is closed or about to be."""
        return bool(self._transport.is_closing())

    def pause_reading(self) -> None:
        """Read no further."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        """Whether the socket is read."""
        return bool(self._transport.is_reading())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When the protocol is told to write no more, in bytes that wait."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """When the protocol is told to write on, and to write no more."""
        low, high = self._transport.get_write_buffer_limits()
        return low, high

    def get_write_buffer_size(self) -> int:
        """How many bytes wait to be sent."""
        return int(self._transport.get_write_buffer_size())

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told of what comes."""
        return self._inner

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Tell another of what comes from now on."""
        self._inner = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the session, else of the socket."""
        if name == "ssl_object":
            return self._tls
        if name == "sslcontext":
            return self._tls.context
        if name == "peercert":
            return self._tls.getpeercert()
        if name == WORKLOAD:
            return "" if self._is_over() else self._uri
        return self._transport.get_extra_info(name, default)

    def _note_client(self) -> None:
        """Read once whose certificate was shown, in this handshake or in the one that it resumes."""
        certificate: Mapping[str, Any] = self._tls.getpeercert() or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        self._uri = uris[0] if len(uris) == 1 else ""
        self._ends = ssl.cert_time_to_seconds(certificate["notAfter"]) if certificate else NEVER

    def _is_over(self) -> bool:
        """Whether the client's certificate has ended: nobody is known by it any more."""
        return self._ends <= self._wall()

    def _say_goodbye(self) -> None:
        with suppress(ssl.SSLError):  # the client has not said it yet, or what it sends is not read any more
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())
