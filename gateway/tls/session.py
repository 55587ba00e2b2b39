"""One TLS connection of a client, between its socket and a protocol that knows no TLS.

It buffers nothing. Received bytes are decrypted and passed on in one piece, like a socket's read. Written
bytes are encrypted into the socket's buffer. So the socket answers the protocol's requests to its transport
(buffer sizes, pauses, end of sending), as without TLS.

A client's certificate expires: a handshake after that is refused, and an open connection accepts no more
requests.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, cast

from gateway.core.credentials import WORKLOAD
from gateway.tls.certificates import Certificates

# The transport of a protocol over TLS: encrypts bytes, and passes all other calls to the socket.

# Maximum of a TLS record, and so of a connection's buffers.
RECORD_BYTES_MAX = 16 * 1024
NEVER = float("inf")


class TlsTransport:
    """The transport that the protocol `inner` sees; it is open after the handshake."""

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
        # The single URI of the client's certificate, and the certificate's end as Unix time.
        self._uri, self._ends, self._wall = "", NEVER, wall

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send bytes."""
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
        """Encrypt and send several pieces of bytes."""
        self.write(b"".join(lines))

    def can_write_eof(self) -> bool:
        """Return True: sending can end before receiving."""
        return True

    def write_eof(self) -> None:
        """End the sending side. Bytes that the client sends later are not decrypted, only counted."""
        if self._open and not self._half:
            self._say_goodbye()
            self._half = True
            self._transport.write_eof()

    def close(self) -> None:
        """Send the waiting bytes and TLS' close notification, and close the socket."""
        if self._open:
            if not self._half and not self._transport.is_closing():
                self._say_goodbye()
            self._half = True
        self._transport.close()

    def abort(self) -> None:
        """Close the socket at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether the socket is closed or about to be."""
        return bool(self._transport.is_closing())

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        """Return whether the socket is read."""
        return bool(self._transport.is_reading())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the numbers of waiting bytes that pause and resume the protocol's writing."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the numbers of waiting bytes that resume and pause the protocol's writing."""
        low, high = self._transport.get_write_buffer_limits()
        return low, high

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that wait to be sent."""
        return int(self._transport.get_write_buffer_size())

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol that receives the bytes."""
        return self._inner

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Set another protocol as the receiver of the bytes."""
        self._inner = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the TLS session, or else about the socket."""
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
        """Store the URI and expiry of the client's certificate, also of a resumed TLS session."""
        certificate: Mapping[str, Any] = self._tls.getpeercert() or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        self._uri = uris[0] if len(uris) == 1 else ""
        self._ends = ssl.cert_time_to_seconds(certificate["notAfter"]) if certificate else NEVER

    def _is_over(self) -> bool:
        """Return whether the client's certificate has expired, so that it identifies nobody any more."""
        return self._ends <= self._wall()

    def _say_goodbye(self) -> None:
        with suppress(ssl.SSLError):  # the client's close notification is missing, or is not read any more
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())


# Maximum of TLS' own answers (such as key updates) that a client leaves unread.
OWN_BYTES_MAX = 64 * 1024
HANDSHAKE_RECORD = 0x16
PLAINTEXT = b"This port speaks TLS: begin the URL with https://\n"
_TOLD = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    % len(PLAINTEXT)
)
SHAKING, OPEN, CLOSED = range(3)
# The failure of a client that left before its first byte.
SILENT = "silent"
BAD_CERTIFICATE = "bad_certificate"
# Maximum interval between checks of a certificate's end, as the clock may be set.
LOOK_S_MAX = 3_600.0


class Gate(Protocol):
    """The parts of a port's `TlsGate` that a session uses."""

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a new connection."""

    def wall(self) -> float:
        """Return the current Unix time in seconds."""

    def opened(self, session: TlsSession) -> None:
        """Register a new connection, and start the deadline of its handshake."""

    def is_due(self, session: TlsSession) -> bool:
        """Return whether this handshake may continue now; otherwise call its `go_on` later."""

    def settled(self, session: TlsSession, failure: str) -> None:
        """Register the end of a handshake; `failure` is the reason if it failed, else empty."""


class TlsSession(TlsTransport, asyncio.Protocol):
    """The protocol of an accepted socket, and after the handshake the transport of the protocol `inner`."""

    __slots__ = ("_ended", "_gate", "_incoming", "_state", "_timer", "_waiting", "failure")

    def __init__(self, gate: Gate, inner: asyncio.Protocol) -> None:
        self._gate = gate
        self._incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = gate.context().wrap_bio(self._incoming, outgoing, server_side=True)
        super().__init__(inner, tls, outgoing, gate.wall)
        self._state = SHAKING
        self._ended = False
        self._waiting: list[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The reason if the handshake fails, before the connection is closed.
        self.failure = SILENT

    # callbacks of the socket

    def connection_made(self, transport: Any) -> None:
        """Register the session of an accepted socket."""
        self._transport = transport
        self._gate.opened(self)

    def data_received(self, data: bytes) -> None:
        """Decrypt received bytes and pass them on; during the handshake, continue it."""
        if self._state == OPEN:
            if self._ends < NEVER and self._is_over():
                self._shut()
                if self.is_closing():
                    return
            self._take(data)
        elif self._state == SHAKING:
            if self._waiting is not None:
                self._waiting.append(data)
                return
            if data[0] != HANDSHAKE_RECORD and not self._incoming.pending and self.failure == SILENT:
                self.failure = "plaintext"
                self._transport.write(_TOLD + PLAINTEXT)
                self._transport.close()
                return
            self.failure = "broken_off"
            if self._gate.is_due(self):
                self._shake(data)
            else:
                self._waiting = [data]
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Note that the client sends nothing more; return whether the socket stays open to write."""
        if self._state != OPEN:
            return False
        if not self._ended:
            self._end()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Report the closed socket: to the gate during the handshake, afterwards to the inner protocol."""
        state, self._state, self._open = self._state, CLOSED, False
        if self._timer is not None:
            self._timer.cancel()
        if state == SHAKING:
            self._gate.settled(self, self.failure)
        elif self._inner is not None:
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """Pause the inner protocol's writing, as the client reads slowly."""
        if self._state == OPEN:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Resume the inner protocol's writing."""
        if self._state == OPEN:
            self._inner.resume_writing()

    # the handshake

    def go_on(self) -> None:
        """Continue the handshake when it is its turn."""
        waiting, self._waiting = self._waiting, None
        if self._state == SHAKING and waiting is not None:
            self._transport.resume_reading()
            self._shake(b"".join(waiting))

    def _shake(self, data: bytes) -> None:
        """Continue the handshake with `data` from the client; once it is done, connect the inner protocol."""
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self.failure = _named(error)
            self._flush()  # the alert for the client
            self._transport.close()
            return
        self._note_client()
        if self._is_over():  # it was verified in the first handshake, perhaps long ago
            self.failure = BAD_CERTIFICATE
            self._transport.abort()  # without a close notification, so that OpenSSL drops the session
            return
        self._flush()
        self._state, self._open = OPEN, True
        self._gate.settled(self, "")
        self._inner.connection_made(cast("asyncio.Transport", self))  # it has the methods of one
        if self._ends < NEVER:
            self._look()
        if self._incoming.pending and not self.is_closing():
            self._take(b"")

    def expire(self, failure: str) -> None:
        """Close the connection of an unfinished handshake, with the reason `failure`."""
        if self._state == SHAKING:
            self.failure = failure
            self._transport.abort()

    # the end of the client's certificate

    def _look(self) -> None:
        left_s = self._ends - self._wall()
        if left_s <= 0:
            self._shut()
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(left_s, LOOK_S_MAX), self._look)

    def _shut(self) -> None:
        """Accept no further request on this connection; the inner protocol may finish the present one."""
        getattr(self._inner, "shut", self.close)()

    # bytes of an open connection

    def _take(self, data: bytes) -> None:
        """Decrypt `data` from the client and pass it to the inner protocol."""
        if self._half:
            self._inner.data_received(data)  # to be counted, not read
            return
        if self._ended:
            return
        parts: list[bytes] = []
        view, ended = memoryview(data), False
        try:
            for start in range(0, len(view) or 1, RECORD_BYTES_MAX):
                self._incoming.write(view[start : start + RECORD_BYTES_MAX])
                ended = self._decrypt(parts)
                if ended:
                    break
        except ssl.SSLError:
            self._flush()
            self._transport.abort()
            return
        self._flush()
        if self._transport.get_write_buffer_size() > OWN_BYTES_MAX and not parts:
            self._transport.abort()
            return
        if parts:
            self._inner.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if ended and not self.is_closing():
            self._end()

    def _decrypt(self, parts: list[bytes]) -> bool:
        """Add the payload of all complete records to `parts`; return whether the client ended TLS."""
        tls, incoming = self._tls, self._incoming
        while True:
            try:
                part = tls.read(RECORD_BYTES_MAX)
            except ssl.SSLWantReadError:
                return False
            if not part:
                return True
            parts.append(part)
            if not incoming.pending and not tls.pending():
                return False

    def _end(self) -> None:
        """Notify the inner protocol that the client sends nothing more; close unless it still writes."""
        self._ended = True
        if not self._inner.eof_received():
            self.close()


def _named(error: ssl.SSLError) -> str:
    """Return the label of a failed handshake's reason in the metrics."""
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "no_certificate"
    if isinstance(error, ssl.SSLCertVerificationError) or reason == "CERTIFICATE_VERIFY_FAILED":
        return BAD_CERTIFICATE
    return "refused_by_client" if "ALERT" in reason else "protocol"


# One port with TLS: handshakes have a deadline, a maximum number, and take turns.

# A handshake takes a millisecond of CPU: maximum in one iteration of the event loop.
STEPS_A_TURN = 4
HANDSHAKE_S = 10.0
HANDSHAKES_MAX = 1_000


class TlsGate:
    """The shared state of the sessions at one port. `failures` counts failed handshakes by reason.

    Above the maximum of handshakes in progress, the oldest one is aborted.
    """

    def __init__(
        self,
        port: str,
        certificates: Certificates,
        *,
        handshake_s: float = HANDSHAKE_S,
        handshakes_max: int = HANDSHAKES_MAX,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.port, self.certificates, self.wall = port, certificates, wall
        self.failures: Counter[str] = Counter()
        self.bound(handshake_s, handshakes_max)
        self._loop = asyncio.get_running_loop()
        self._shaking: dict[TlsSession, asyncio.TimerHandle] = {}
        self._due: deque[TlsSession] = deque()
        self._steps_left = STEPS_A_TURN
        self._scheduled = False

    def bound(self, handshake_s: float, handshakes_max: int) -> None:
        """Apply these limits from the next connection on."""
        self._handshake_s, self._handshakes_max = handshake_s, handshakes_max

    def wrapped(self, inner: Callable[[], Any]) -> Callable[[], TlsSession]:
        """Return a factory of protocols with TLS between the socket and a protocol of `inner`."""
        return lambda: TlsSession(self, inner())

    def snapshot(self) -> dict[str, Any]:
        """Return the metrics of this port."""
        return {
            "tls_handshake_failures": [
                [self.port, why, count] for why, count in sorted(self.failures.items())
            ],
            "tls_certificate_stale": [[self.port, int(bool(self.certificates.stale))]],
            "certificate_expiry_timestamp_seconds": [[name, end] for name, end in self.ends()],
        }

    def ends(self) -> list[tuple[str, float]]:
        """Return the expiry of the certificate and of the clients' authorities in Unix time, with names."""
        certificates, name = self.certificates, f"{self.port} port"
        both = ((name, certificates.ends), (f"{name} clients", certificates.clients_end))
        return [(whose, end) for whose, end in both if end is not None]

    # the interface for sessions

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of the certificate in use."""
        return self.certificates.context

    def opened(self, session: TlsSession) -> None:
        """Start the deadline of a handshake; above the maximum, abort the oldest one."""
        if len(self._shaking) >= self._handshakes_max:
            oldest = next(iter(self._shaking))
            self._shaking.pop(oldest).cancel()
            oldest.expire("crowded_out")
        self._shaking[session] = self._loop.call_later(self._handshake_s, session.expire, "timeout")

    def is_due(self, session: TlsSession) -> bool:
        """Return whether a handshake may continue now; otherwise queue it after the earlier ones."""
        self._schedule()
        if self._steps_left > 0 and not self._due:
            self._steps_left -= 1
            return True
        self._due.append(session)
        return False

    def settled(self, session: TlsSession, failure: str) -> None:
        """Stop the deadline of a handshake, and count its failure."""
        deadline = self._shaking.pop(session, None)
        if deadline is not None:
            deadline.cancel()
        if failure not in {"", SILENT}:  # a silent client only checked whether the port is open
            self.failures[failure] += 1

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(min(STEPS_A_TURN, len(self._due))):
            self._due.popleft().go_on()
        self._steps_left = STEPS_A_TURN
        if self._due:
            self._steps_left = 0
            self._schedule()
