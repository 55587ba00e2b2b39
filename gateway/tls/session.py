"""One TLS connection of a client: a socket on one side, a protocol that knows nothing of TLS on the other.

It keeps nothing. What comes is decrypted and handed on in one piece, as a socket's read is. What is written
is encrypted into the buffer of the socket. So what a protocol asks of its transport (how much waits to be
sent, no more reading, an end of sending) is answered by the socket, and means what it means without TLS.

A client's certificate has an end. A handshake after it is closed, and a connection takes no request after it.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol, cast

from gateway.tls.transport import NEVER, RECORD_BYTES_MAX, TlsTransport

# Answers to a client's messages of TLS itself that it does not take.
OWN_BYTES_MAX = 64 * 1024
HANDSHAKE_RECORD = 0x16
PLAINTEXT = b"This port speaks TLS: begin the URL with https://\n"
_TOLD = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    % len(PLAINTEXT)
)
SHAKING, OPEN, CLOSED = range(3)
# Whoever left before the first byte.
SILENT = "silent"
BAD_CERTIFICATE = "bad_certificate"
# A clock may be set: it is looked at least so often whether a certificate is over.
LOOK_S_MAX = 3_600.0


class Gate(Protocol):
    """What a session asks of the port it belongs to."""

    def context(self) -> ssl.SSLContext:
        """What a new connection is made with."""

    def wall(self) -> float:
        """What the time is, Unix time."""

    def opened(self, session: Session) -> None:
        """A connection begins; from now on its handshake has a deadline."""

    def is_due(self, session: Session) -> bool:
        """Whether it is this handshake's turn; else `go_on` is called once it is."""

    def settled(self, session: Session, failure: str) -> None:
        """The handshake is over; why it failed, empty where it did not."""


class Session(TlsTransport, asyncio.Protocol):
    """The protocol of an accepted socket; the transport of the protocol `inner`, once hands are shaken."""

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
        # Why the handshake has failed, where it is known before the connection is gone.
        self.failure = SILENT

    # what the socket tells

    def connection_made(self, transport: Any) -> None:
        """A socket is accepted."""
        self._transport = transport
        self._gate.opened(self)

    def data_received(self, data: bytes) -> None:
        """Decrypt what came and hand it on; before that, shake hands."""
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
                self._tell_plaintext()
                return
            self.failure = "broken_off"
            if self._gate.is_due(self):
                self._shake(data)
            else:
                self._waiting = [data]
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends nothing more; whether the socket stays open to be written to."""
        if self._state != OPEN:
            return False
        if not self._ended:
            self._end()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        state, self._state, self._open = self._state, CLOSED, False
        if self._timer is not None:
            self._timer.cancel()
        if state == SHAKING:
            self._gate.settled(self, self.failure)
        elif self._inner is not None:
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        if self._state == OPEN:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._state == OPEN:
            self._inner.resume_writing()

    # the handshake

    def go_on(self) -> None:
        """Do the next step of the handshake: it is its turn."""
        waiting, self._waiting = self._waiting, None
        if self._state == SHAKING and waiting is not None:
            self._transport.resume_reading()
            self._shake(b"".join(waiting))

    def _shake(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self.failure = _named(error)
            self._flush()  # what it is told of it
            self._transport.close()
            return
        self._note_client()
        if self._is_over():  # it was verified when it was shown, which may be long ago
            self.failure = BAD_CERTIFICATE
            self._transport.abort()  # without a goodbye, so that OpenSSL forgets the session
            return
        self._flush()
        self._state, self._open = OPEN, True
        self._gate.settled(self, "")
        self._inner.connection_made(cast("asyncio.Transport", self))  # it does what one does
        if self._ends < NEVER:
            self._look()
        if self._incoming.pending and not self.is_closing():
            self._take(b"")

    def expire(self, failure: str) -> None:
        """Shake hands no longer."""
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
        """Take no further request: what is under way is finished by who can."""
        getattr(self._inner, "shut", self.close)()

    def _tell_plaintext(self) -> None:
        self.failure = "plaintext"
        self._transport.write(_TOLD + PLAINTEXT)
        self._transport.close()

    # bytes of an open connection

    def _take(self, data: bytes) -> None:
        if self._half:
            self._inner.data_received(data)  # it is counted, not read
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
        """Add what the records hold that are here whole; whether the last of them was a goodbye."""
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
        """The client has said that it sends nothing more."""
        self._ended = True
        if not self._inner.eof_received():
            self.close()


def _named(error: ssl.SSLError) -> str:
    """Why hands were not shaken, as metrics have it."""
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "no_certificate"
    if isinstance(error, ssl.SSLCertVerificationError) or reason == "CERTIFICATE_VERIFY_FAILED":
        return BAD_CERTIFICATE
    return "refused_by_client" if "ALERT" in reason else "protocol"
