"""One client's connection: heads and bodies come in, answers go out, in order, one at a time.

A request behind one in progress waits unread. Whatever is wrong with it is said after the
answer in front of it. Framing and flow only: what a request means is the story's affair.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Protocol

from gateway.core.wait import Wait
from gateway.errors import Refusal, RequestTooLarge
from gateway.http.clock import NEVER, Clock
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.framing import HEAD_END, LAST_CHUNK, ChunkedBody, Malformed, chunk, has_bare_newline
from gateway.http.limits import HttpLimits
from gateway.http.link import Link
from gateway.http.plan import Plan, Planner, family_of_head
from gateway.http.request import (
    FieldsTooLarge,
    MalformedRequest,
    RequestTimeout,
    TargetTooLong,
    cut_length,
)

_IDLE, _BODY, _BUSY, _DISCARD, _LINGER, _CLOSED = range(6)
_SUCCESSOR, _UNWANTED, _SLOW_UPSTREAM = 1, 2, 4
_RESET = struct.pack("ii", 1, 0)


class Host(Protocol):
    """What a connection needs of its worker."""

    planner: Planner
    limits: HttpLimits
    clock: Clock
    draining: bool

    def opened(self, connection: ClientConnection) -> bool:
        """Count a connection; False where there are too many."""

    def closed(self, connection: ClientConnection) -> None:
        """The connection is gone."""

    def exchange(self, connection: ClientConnection, plan: Plan) -> Exchange:
        """Make the exchange of a request whose head has arrived."""

    def tell(self, exchange: Exchange) -> None:
        """Begin the story of a request."""


class ClientConnection(asyncio.Protocol):
    """The protocol of one accepted socket."""

    __slots__ = (
        "_advancing",
        "_body_wait",
        "_buffer",
        "_buffered",
        "_chunked",
        "_closing",
        "_discarded",
        "_ended",
        "_host",
        "_left",
        "_left_s",
        "_limits",
        "_parts",
        "_pauses",
        "_phase",
        "_scanned",
        "_sink",
        "_sink_chunked",
        "_size",
        "_write_wait",
        "blocked",
        "deadline",
        "exchange", "idle_since",
        "transport",
    )  # fmt: skip

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limits = host.limits
        self.transport: Any = None
        self.exchange: Exchange | None = None
        self.deadline = self.idle_since = NEVER
        self.blocked = False
        self._phase = _IDLE
        self._buffer = b""
        self._buffered = False
        self._scanned = self._pauses = 0
        self._advancing = False
        self._closing = False
        self._ended = False
        self._left = 0
        self._left_s = 0.0
        self._chunked: ChunkedBody | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._discarded = 0
        self._sink: Link | None = None
        self._sink_chunked = False
        self._body_wait: Wait[None] | None = None
        self._write_wait: Wait[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Accept, unless there are too many."""
        self.transport = transport
        if self._host.opened(self):
            self.idle_since = self._host.clock.now
            self.deadline = self._host.clock.now + self._limits.head_s

    def data_received(self, data: bytes) -> None:
        """Take in bytes of a head, of a body, or of what comes later."""
        phase = self._phase
        if phase == _IDLE:
            self._buffer = self._buffer + data if self._buffer else data
            self._advance()
        elif phase in (_BODY, _DISCARD):
            self._take_body(data)
        elif phase == _BUSY:
            self._buffer += data
            self._pause(_SUCCESSOR)
        elif phase == _LINGER:
            self._count_discarded(len(data))

    def eof_received(self) -> bool:
        """The client has said everything; it may still read, unless the route says that is leaving."""
        exchange = self.exchange
        if exchange is None or self._phase != _BUSY:
            return False
        self._ended = self._closing = True
        return exchange.plan.route is None or exchange.plan.route.on_disconnect != "abort"

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone."""
        self._phase = _CLOSED
        self.deadline = NEVER
        self._buffer = b""
        self._sink = None
        self._host.closed(self)
        if self.exchange is not None:
            self.exchange.client_gone(self._host.clock, self._limits)
        write_wait, body_wait = self._write_wait, self._body_wait
        self._write_wait = self._body_wait = None
        if write_wait is not None:
            write_wait.set(None)  # nobody reads slowly any more: an answer that is drained goes on
        if body_wait is not None:
            body_wait.fail(ClientGone())

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self.blocked = True
        self.deadline = self._host.clock.now + self._limits.client_write_s

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.blocked = False
        self.deadline = NEVER if self._phase == _BUSY else self._host.clock.now + self._limits.body_s
        wait, self._write_wait = self._write_wait, None
        if wait is not None:
            wait.set(None)

    # what the exchange asks of its connection

    def write(self, data: bytes) -> None:
        """Send bytes to the client; nothing once it is gone."""
        if self._phase != _CLOSED:
            self.transport.write(data)

    def writable(self) -> Wait[None]:
        """Wait until the client has caught up or is gone."""
        wait: Wait[None] = Wait()
        if self._phase == _CLOSED or not self.blocked:
            wait.set(None)
        else:
            self._write_wait = wait
        return wait

    def body_arrival(self) -> Wait[None]:
        """Ask for the rest of the body; done when it is complete. Fails with a `Refusal` or `ClientGone`."""
        self._body_wait = wait = Wait[None]()
        if self._phase != _BODY:
            wait.set(None)
        self._resume(_UNWANTED)
        return wait

    def body(self) -> bytes:
        """The body bytes that have arrived; they are given away."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def body_complete(self) -> bool:
        """Whether the present request has arrived in full."""
        return self._phase != _BODY

    @property
    def reusable(self) -> bool:
        """Whether another request may follow, once what is left of this one's body is dropped."""
        if self._closing or self._host.draining:
            return False
        return self._phase != _BODY or (
            self._chunked is None and self._left <= self._limits.discarded_bytes_max
        )

    def stream_body(self, link: Link, chunked: bool) -> None:
        """Send what comes of the body from now on into a link, at the link's speed."""
        self._sink, self._sink_chunked = link, chunked
        link.source = self
        self._resume(_UNWANTED)

    def pause_body(self) -> None:
        """The upstream reads slowly, which costs its client no time."""
        self._pause(_SLOW_UPSTREAM)
        if self._phase == _BODY:
            self._left_s = self.deadline - self._host.clock.now
            self.deadline = NEVER

    def resume_body(self) -> None:
        """The upstream has caught up."""
        if self._phase == _BODY and self.deadline == NEVER:
            self.deadline = self._host.clock.now + self._left_s
        self._resume(_SLOW_UPSTREAM)

    def finish(self, keep_alive: bool) -> None:
        """The answer is written. Go on to the next request, or close once the client has read it."""
        self.exchange = None
        self._sink = self._body_wait = None
        self._parts = []
        if self._phase == _CLOSED:
            return
        if not keep_alive or self._closing:
            self._linger()
        elif self._phase == _BODY:
            self._phase = _DISCARD
            self._discarded = 0
            self.deadline = self._host.clock.now + self._limits.body_s
            self._resume(_UNWANTED | _SLOW_UPSTREAM)
        else:
            self._next()

    def cut(self, reset: bool) -> None:
        """Break the connection so that the client cannot take what it has for a complete answer."""
        self.exchange = None
        if self._phase == _CLOSED:
            return
        self._phase = _LINGER
        self.deadline = self._host.clock.now + self._limits.linger_s
        if reset:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        else:
            self.transport.close()

    # deadlines

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = NEVER
        if self._phase == _IDLE:
            if self._buffer:
                self._refuse(RequestTimeout(), self._buffer)
            else:
                self.transport.close()
        elif self._phase == _BODY and not self.blocked:
            self._fail_body(RequestTimeout("The body did not arrive in time."))
        else:
            self.transport.abort()

    def turn_away(self, refusal: Refusal) -> None:
        """Refuse a connection before its first byte, and close it."""
        self._refuse(refusal)

    def shut(self) -> None:
        """Close as soon as no request is in progress."""
        self._closing = True
        if self._phase == _IDLE and not self._buffer:
            self.transport.close()

    # heads

    def _advance(self) -> None:
        """Read heads from the buffer until a request is in progress or more bytes are needed."""
        if self._advancing:
            return
        self._advancing = True
        while self._phase == _IDLE and self._buffer and self._read_head():
            pass
        self._advancing = False
        if self._phase == _IDLE:
            self._resume(_SUCCESSOR)
        elif self._phase == _BUSY and self._buffer:
            self._pause(_SUCCESSOR)

    def _read_head(self) -> bool:
        data = self._buffer
        if data[:2] == b"\r\n" and not self._scanned:  # one empty line in front is ignored: RFC 9112, 2.2
            data = data[2:]
        end = data.find(HEAD_END, self._scanned)
        if end < 0 or end > self._limits.header_bytes_max:
            return self._partial_head(data)
        self._buffer = data[end + 4 :]
        self._scanned = 0
        head, length = cut_length(data[: end + 4])
        planner = self._host.planner
        plan = planner.known.get(head)
        if plan is None:
            plan = planner.plan(head)
        if length >= 0 and (plan.chunked or plan.length is not None):
            self._refuse(MalformedRequest("The length of the body is stated twice."), head)
            return False
        self._begin(plan, length if length >= 0 else plan.length)
        return True

    def _partial_head(self, data: bytes) -> bool:
        """Wait for the rest of a head, unless it can be refused already."""
        limits = self._limits
        if not self._scanned:
            self.deadline = self._host.clock.now + limits.head_s
        self._scanned = max(1, len(data) - 3)
        if (
            b"\r\n" not in data[: limits.request_line_bytes_max + 2]
            and len(data) > limits.request_line_bytes_max
        ):
            self._refuse(TargetTooLong(), data)
        elif len(data) > limits.header_bytes_max:
            self._refuse(FieldsTooLarge(), data)
        elif (data and not data[:1].isalpha() and data != b"\r") or has_bare_newline(data):
            self._refuse(MalformedRequest(), data)
        else:
            self._buffer = data
        return False

    def _refuse(self, refusal: Refusal, head: bytes = b"") -> None:
        """Answer bytes that are not a request, and close."""
        self._buffer = b""
        self._begin(Plan(family_of_head(head), refusal=refusal, fatal=True), None)

    def _begin(self, plan: Plan, length: int | None) -> None:
        self.exchange = exchange = self._host.exchange(self, plan)
        self.deadline = NEVER
        self._phase = _BUSY
        if plan.fatal:
            self._closing = True
            self._buffer = b""
        elif plan.chunked:
            limits = self._limits
            self._chunked = ChunkedBody(
                limits.chunk_line_bytes_max, limits.chunk_extension_bytes_max, limits.trailer_bytes_max
            )
            self._begin_body(0)
        elif length:
            exchange.body_length = length
            if plan.buffered and length > self._limits.body_bytes_max:
                exchange.body_failure = RequestTooLarge()
            buffer = self._buffer
            if len(buffer) == length:
                self._parts.append(buffer)
                self._buffer = b""
            elif len(buffer) > length:
                self._parts.append(buffer[:length])
                self._buffer = buffer[length:]
            else:
                self._begin_body(length)
        else:
            exchange.body_length = length
        self._host.tell(exchange)

    # bodies

    def _begin_body(self, length: int) -> None:
        self._phase = _BODY
        self._size = 0
        self._buffered = self.exchange is not None and self.exchange.plan.buffered
        self._left = length
        self.deadline = self._host.clock.now + self._limits.body_s
        data, self._buffer = self._buffer, b""
        if data:
            self._take_body(data)

    def _take_body(self, data: bytes) -> None:
        if self._chunked is not None:
            try:
                data = self._chunked.feed(data)
            except Malformed as error:
                self._closing = True
                self._fail_body(MalformedRequest(f"The body is not chunked as it says: {error}."))
                return
            done = self._chunked.done
            if done:
                self._buffer, self._chunked = self._chunked.rest, None
        else:
            if len(data) > self._left:
                self._buffer = data[self._left :]
                data = data[: self._left]
            self._left -= len(data)
            done = self._left == 0
        if data:
            self._pass_on(data)
        if done and self._phase in (_BODY, _DISCARD):
            self._body_done()

    def _pass_on(self, data: bytes) -> None:
        self._size += len(data)
        if self._phase == _DISCARD:
            self._count_discarded(len(data))
        elif self._sink is not None:
            # A body that is streamed has no limit, but it has to keep coming.
            self.deadline += len(data) / self._limits.body_bytes_per_s_min
            self._sink.send(chunk(data) if self._sink_chunked else data)
        elif self._size > self._limits.body_bytes_max and self._buffered:
            self._fail_body(RequestTooLarge())
        else:
            self._parts.append(data)
            if self._body_wait is None:
                self._pause(_UNWANTED)

    def _body_done(self) -> None:
        if self._phase == _DISCARD:
            self._next()
            return
        self._phase = _BUSY
        self.deadline = NEVER
        sink, self._sink = self._sink, None
        if sink is not None and self._sink_chunked:
            sink.send(LAST_CHUNK)
        wait, self._body_wait = self._body_wait, None
        if wait is not None:
            wait.set(None)

    def _fail_body(self, refusal: Refusal) -> None:
        """The body cannot be had: the story ends where it waits, the connection after it."""
        self._closing = True
        self._chunked = None
        self._phase = _BUSY
        self._sink = None
        self._buffer = b""
        self.deadline = NEVER
        wait, self._body_wait = self._body_wait, None
        if wait is not None:
            wait.fail(refusal)
        elif self.exchange is not None:
            self.exchange.body_failed(refusal)
        else:
            self._linger()

    def _count_discarded(self, size: int) -> None:
        self._discarded += size
        if self._phase == _DISCARD:
            if self._discarded > self._limits.discarded_bytes_max:
                self._linger()
        elif self._discarded > self._limits.lingered_bytes_max:
            self.transport.abort()

    # between requests, and the end

    def _next(self) -> None:
        self._phase = _IDLE
        if self._closing:
            self._linger()
            return
        self.idle_since = self._host.clock.now
        self.deadline = self.idle_since + self._limits.keepalive_s
        if self._buffer:
            self._advance()
        elif self._pauses:
            self._resume(_SUCCESSOR | _UNWANTED | _SLOW_UPSTREAM)

    def _linger(self) -> None:
        """Say that nothing more comes, and read on for a while: closing at once could destroy the answer."""
        self._phase = _LINGER
        self._buffer = b""
        self._chunked = None
        self._discarded = 0
        self.deadline = self._host.clock.now + self._limits.linger_s
        if not self._ended and self.transport.can_write_eof():
            self.transport.write_eof()
            self._resume(_SUCCESSOR | _UNWANTED | _SLOW_UPSTREAM)
        else:
            self.transport.close()

    def _pause(self, reason: int) -> None:
        if not self._pauses and self._phase != _CLOSED:
            self.transport.pause_reading()
        self._pauses |= reason

    def _resume(self, reason: int) -> None:
        if self._pauses:
            self._pauses &= ~reason
            if not self._pauses and self._phase != _CLOSED:
                self.transport.resume_reading()
