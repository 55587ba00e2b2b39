"""One client connection: receives heads and bodies, and sends answers, in order, one at a time.

The next request waits unread while one is in progress; an error in it is answered after the present answer.
`ClientSide` does the framing, and the handler knows the meaning of a request: here are flow control,
deadlines, and the end of a connection.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
from typing import Any, Protocol

from gateway.core.http_limits import HttpLimits
from gateway.core.model import Caller
from gateway.core.shares import FairShares
from gateway.core.wait import Wait
from gateway.errors import MalformedRequest, Refusal, RequestTimeout, RequestTooLarge
from gateway.http.protocol.framing import BODY, BROKEN, CLOSING, DISCARDING, IDLE, WHOLE
from gateway.http.protocol.request import ClientSide
from gateway.http.routing.head import CallHead, HeadReader, SocketOpening, unreadable
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.routing.routes import is_long_form
from gateway.http.server.buffers import Buffers, ConnectionBuffers, full
from gateway.http.server.exchange import ClientGone, Exchange, RequestBody, TurnSink
from gateway.http.tally import NEVER, TickClock
from gateway.http.turns import FairQueue
from gateway.http.upstream.pool import Link

# Whether a client's socket is read, the reasons if not, and whether the client is still connected.
#
# While a socket is not read, the kernel shows its state: a reset at once, the client's end once all bytes
# before it are in our buffers. Bytes in the client's own buffers hide its end, up to the upstream's
# deadlines.

SUCCESSOR, UNWANTED, SLOW_UPSTREAM, SLOW_CLIENT, TURN = 1, 2, 4, 8, 16
ANYTHING = SUCCESSOR | UNWANTED | SLOW_UPSTREAM | SLOW_CLIENT  # without TURN, which ends by itself
_ENDED = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere only reading shows the end
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL
_NUMBER = struct.Struct("i")
_RESET = struct.pack("ii", 1, 0)


class ReadPause:
    """The reasons not to read a socket; it is read while there is no reason. Does nothing after `close`."""

    __slots__ = ("_transport", "paused")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.paused = 0

    def pause(self, reason: int) -> None:
        """Stop reading until `resume` is called for this reason."""
        if not self.paused and self._transport is not None:
            self._transport.pause_reading()
        self.paused |= reason

    def resume(self, reasons: int) -> None:
        """Remove these reasons for a pause; continue reading if no other reason is left."""
        if self.paused:
            self.paused &= ~reasons
            if not self.paused and self._transport is not None:
                self._transport.resume_reading()

    def close(self) -> None:
        """Drop the reference to the transport, whose socket is closed."""
        self._transport = None

    def break_off(self) -> None:
        """Reset the connection, so that its client cannot take a partial answer for a complete one."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def is_left(self) -> bool:
        """Return whether the client has broken the connection while reading was paused."""
        return bool(self._events() & _BROKEN)

    def is_ended(self) -> bool:
        """Return whether the client has closed its sending side, while reading was paused."""
        return bool(self._events() & _ENDED)

    def unread(self) -> int:
        """Return the number of bytes that arrived and are not read yet."""
        found = fcntl.ioctl(self._descriptor(), termios.FIONREAD, bytes(_NUMBER.size))
        return int(_NUMBER.unpack(found)[0])

    def _events(self) -> int:
        poll = select.poll()
        poll.register(self._descriptor(), _ENDED)
        return sum(events for _, events in poll.poll(0))

    def _descriptor(self) -> int:
        return int(self._transport.get_extra_info("socket").fileno())


# Maximum of bytes of one read: then other clients come first.
TURN_BYTES_MAX = 64 * 1024
# The cost of a pipelined request in such a turn, in bytes of an answer.
_SUCCESSOR_COSTS = 4096
_NOBODY = -1
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RUNS = -1.0  # the deadline of a body is not stopped


class _Host(Protocol):
    """The parts of a worker's `DataPlane` that a connection uses."""

    heads: HeadReader
    limits: HttpLimits
    buffers: Buffers
    clock: TickClock
    turns: FairQueue
    lingering: FairShares
    draining: bool

    def opened(self, connection: ClientConnection) -> bool: ...
    def closed(self, connection: ClientConnection) -> None: ...
    def parted(self, connection: ClientConnection) -> None: ...
    def exchange(self, connection: ClientConnection, head: CallHead) -> Exchange: ...
    def tell(self, exchange: Exchange) -> None: ...


class ClientConnection(asyncio.Protocol):
    """The protocol of one accepted socket."""

    __slots__ = (
        "_advancing", "_asked", "_buffered", "_closing", "_discarded", "_ended", "_host", "_kept", "_left_s",
        "_limits", "_lingers", "_queued", "_reading", "_side", "_sink", "_write_wait", "blocked", "body",
        "deadline", "exchange", "gone", "idle_since", "socket", "transport",
    )  # fmt: skip

    def __init__(self, host: _Host) -> None:
        self._host = host
        self._limits = host.limits
        self._side = ClientSide(host.limits)
        self.transport: Any = None
        self.exchange: Exchange | None = None
        self.deadline = self.idle_since = NEVER
        self.blocked = self.gone = False
        self._buffered = self._queued = False
        self._reading = ReadPause(None)
        self._advancing = self._closing = self._ended = False
        self._left_s = _RUNS
        self.body = RequestBody(host.buffers)
        self._kept = ConnectionBuffers(host.buffers)
        self._discarded = 0
        self._lingers = _NOBODY
        self._sink: Link | None = None
        self._write_wait: Wait[None] | None = None
        # The WebSocket that has taken over, and its opening while its next turn waits.
        self.socket: TurnSink | None = None
        self._asked: SocketOpening | None = None

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Accept the connection; the server closes it if this worker has too many."""
        self.transport = transport
        self._reading = ReadPause(transport)
        transport.set_write_buffer_limits(self._limits.client_buffer_bytes_max)
        if self._host.opened(self):
            self.idle_since = self._host.clock.now
            self.deadline = self._host.clock.now + self._limits.head_s

    def data_received(self, data: bytes) -> None:
        """Process received bytes: of a head, of a body, or of a later request."""
        if len(data) > TURN_BYTES_MAX:
            self._wait_for_turn()
        side = self._side
        state = side.state
        if state == IDLE:
            side.receive(data)
            self._advance()
        elif state in (BODY, DISCARDING):
            try:
                payload = side.receive(data)
            except MalformedRequest as refusal:
                self._fail_body(refusal)
            else:
                self._take_body(payload)
        elif state == WHOLE:
            side.receive(data)
            self._reading.pause(SUCCESSOR)
            self._keep_unread()
        elif state == CLOSING:
            self._discarded += len(data)
            if self._discarded > self._limits.lingered_bytes_max:
                self.transport.abort()
            elif self._lingers != _NOBODY:
                self._reading.pause(TURN)
                asyncio.get_running_loop().call_later(self._limits.lingered_pause_s, self._take_turn)
        else:
            self._reading.pause(SUCCESSOR)  # the bytes after this request wait unread

    def eof_received(self) -> bool:
        """Return whether to keep the connection after the client's last byte, so that it can still read.

        The connection is closed if no complete request is in progress, if the call waits for an upstream's
        capacity or asks for a WebSocket, or if the route treats the last byte as leaving.
        """
        exchange = self.exchange
        if exchange is None or self._side.state == BODY:
            return False
        self._ended = self._closing = True
        if exchange.attempt.waits or exchange.head.routed.opens is not None:
            return False
        route = exchange.head.routed.route
        return route is None or route.on_disconnect != "abort"

    def connection_lost(self, error: Exception | None) -> None:
        """Release all resources of a client that is gone, and notify its exchange.

        The body that has arrived is kept.
        """
        self.gone = True
        self._reading.close()
        self.deadline = NEVER
        self._sink = None
        self._kept.keep_unread(0)
        self._kept.keep_untaken(None, 0)
        if self._lingers != _NOBODY:
            self._host.lingering.release(self._lingers)
        self._host.closed(self)
        if self.exchange is not None:
            self.exchange.client_gone()
        write_wait, self._write_wait = self._write_wait, None
        if write_wait is not None:
            write_wait.set(None)  # no slow client is left: draining of the answer continues
        self.body.fail(ClientGone())

    def pause_writing(self) -> None:
        """Start the deadline for writing, as the client reads slowly."""
        self.blocked = True
        self.deadline = self._host.clock.now + self._limits.client_write_s

    def resume_writing(self) -> None:
        """Continue after a slow client has caught up."""
        self.blocked = False
        now, limits, state = self._host.clock.now, self._limits, self._side.state
        if self.exchange is not None:
            self.deadline = now + limits.body_s if state == BODY else NEVER
        else:
            self._kept.keep_untaken(None, 0)
            self.deadline = now + (limits.linger_s if state == CLOSING else limits.body_s)
            self._reading.resume(SLOW_CLIENT)
            if state == IDLE:
                self._next()
        wait, self._write_wait = self._write_wait, None
        if wait is not None:
            wait.set(None)

    # the interface for the exchange

    def splice(self, transport: TurnSink, limits: HttpLimits) -> bytes:
        """Switch to a WebSocket and other limits; return the bytes that have arrived already."""
        self.transport = self.socket = transport
        self._limits = limits
        reading = ReadPause(transport)
        reading.paused, self._reading = self._reading.paused, reading
        early, self._side.waiting = self._side.waiting, b""
        self._kept.keep_unread(0)
        return early

    def ask(self, opening: SocketOpening, body: bytes) -> None:
        """Begin the call of a WebSocket's turn, whose body is whole, after the present call."""
        if len(body) > TURN_BYTES_MAX:
            self._wait_for_turn()
        side = self._side
        self._asked, side.waiting = opening, body
        if side.state == IDLE and not self.blocked:
            self._begin_asked(opening)
        else:
            self._reading.pause(SUCCESSOR)
            self._keep_unread()

    def writable(self) -> Wait[None]:
        """Wait until the client has read enough for more to be written, or is gone."""
        wait: Wait[None] = Wait()
        if self.gone or not self.blocked:
            wait.set(None)
        else:
            self._write_wait = wait
        return wait

    def keep_untaken(self, size: int) -> bool:
        """Count `size` answer bytes that wait to be sent, in addition to the written ones.

        Return False if the caller's share of the buffers is full.
        """
        exchange = self.exchange
        if self.blocked and not self.gone:
            size += self.transport.get_write_buffer_size()
        return self._kept.keep_untaken(exchange.caller if exchange is not None else None, size)

    async def late_body(self, caller: Caller, bytes_max: int) -> None:
        """Wait for the rest of the body, or for more than `bytes_max` bytes, in the caller's share.

        Raises the body's `Refusal`, or `ClientGone`.
        """
        if self.gone:
            raise ClientGone
        self.invite_body()
        body = self.body
        wait = body.arrival(caller, bytes_max)
        if self._side.state != BODY or body.enough:
            body.wake()
        elif not body.afford():
            self._fail_body(full())
        self._reading.resume(UNWANTED)
        await wait
        if body.failure is not None:
            raise body.failure

    async def small_body(self, caller: Caller, bytes_max: int) -> None:
        """Wait for the end of a body of at most `bytes_max` bytes, so that it is never forwarded in part."""
        length = self.body.length
        if self._side.state != WHOLE and (length is None or length <= bytes_max):
            await self.late_body(caller, bytes_max)

    def invite_body(self) -> None:
        """Send `100 Continue`, once, to a client that waits for it (RFC 9110, 10.1.1)."""
        exchange, body = self.exchange, self.body
        if exchange is not None and exchange.head.routed.expects and not (self.gone or body.invited):
            body.invited = True
            self.transport.write(CONTINUE)

    def body_soon(self, caller: Caller) -> Wait[None] | None:
        """Wait a moment for a small body; return None if it is large, or its client awaits `100 Continue`."""
        exchange, length = self.exchange, self.body.length
        if self.gone or exchange is None or exchange.head.routed.expects or length is None:
            return None
        wait = self.body.soon(caller, length, self._limits)
        self._reading.resume(UNWANTED)
        return wait

    @property
    def body_complete(self) -> bool:
        """Whether the present request has arrived in full."""
        return self._side.state == WHOLE

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another request, after dropping the rest of the present body."""
        if self._closing or self._host.draining:
            return False
        return self._side.state == WHOLE or self._side.droppable

    def stream_body(self, link: Link) -> None:
        """Forward the rest of the body through a link as it arrives, at the link's speed."""
        self._sink = link
        link.source = self
        self._reading.resume(UNWANTED)

    def pause_body(self) -> None:
        """Pause the client's body while its upstream reads slowly; its deadline stops meanwhile."""
        self._reading.pause(SLOW_UPSTREAM)
        if self._side.state == BODY and not self.blocked:
            now = self._host.clock.now
            self._left_s = self.deadline - now
            self.deadline = now + self._limits.look_s

    def resume_body(self) -> None:
        """Continue the client's body: the upstream has caught up."""
        if self._side.state == BODY and self._left_s >= 0:
            self.deadline = self._host.clock.now + self._left_s
        self._left_s = _RUNS
        self._reading.resume(SLOW_UPSTREAM)

    def finish(self, keep_alive: bool) -> None:
        """Finish an answer that is written: start the next request, or close once the client has read it."""
        self.body.forget()
        if self.blocked or self._kept.untaken:
            self.keep_untaken(0)
        caller = self.exchange.caller if self.exchange is not None else None
        self.exchange = None
        self._sink = None
        if self.gone:
            return
        side = self._side
        if not keep_alive or self._closing or side.state == BROKEN:
            self._linger(0 if caller is None else caller.organization_id)
            return
        side.answered()
        if side.state == DISCARDING:
            self._discarded = 0
            self._set_deadline(self._limits.body_s)
            self._reading.resume(UNWANTED | SLOW_UPSTREAM)
        else:
            self._next()

    def cut(self, reset: bool) -> None:
        """Close the connection so that the client cannot take a partial answer for a complete one."""
        self.body.forget()
        self._kept.keep_untaken(None, 0)
        self.exchange = None
        if self.gone:
            return
        self._side.close()
        self.deadline = self._host.clock.now + self._limits.linger_s
        if reset:
            self._reading.break_off()
        else:
            self.transport.close()

    def detach_client(self) -> None:
        """Close the connection after the written bytes; the exchange goes on without its client."""
        exchange = self.exchange
        assert exchange is not None
        self._host.parted(self)
        if exchange.broken:
            self.cut(exchange.until_close)
        else:
            self.finish(False)

    # deadlines

    def expire(self) -> None:
        """Process a passed deadline: refuse an incomplete request, or close the connection.

        During a pause of reading, only check whether the client is still connected.
        """
        self.deadline = NEVER
        side = self._side
        if self.blocked:
            self.transport.abort()
        elif side.state == IDLE:
            if side.waiting:
                self.turn_away(RequestTimeout(), side.waiting)
            else:
                self.transport.close()
        elif side.state == BODY and self._left_s >= 0:
            self._look_after_unread()
        elif side.state == BODY:
            self._fail_body(RequestTimeout("The body did not arrive in time."))
        else:
            self.transport.abort()

    def _look_after_unread(self) -> None:
        """Check whether a client is still connected while reading is paused.

        If it has closed its sending side, read its last bytes.
        """
        exchange, reading = self.exchange, self._reading
        assert exchange is not None
        assert exchange.caller is not None
        if reading.is_left():
            self.transport.abort()
        elif reading.is_ended() and not self._host.buffers.pressed:
            self.body.count(exchange.caller, reading.unread())
            reading.resume(SLOW_UPSTREAM)
        else:
            self.deadline = self._host.clock.now + self._limits.look_s

    def shut(self) -> None:
        """Close the connection as soon as no request is in progress."""
        self._closing = True
        if self._side.state == IDLE and not (self._side.waiting or self._asked):
            self.transport.close()

    # heads

    def _advance(self) -> None:
        """Read heads from what arrived until a request is in progress or more bytes are needed."""
        if self._advancing:
            return
        side = self._side
        self._advancing = True
        while side.state == IDLE and side.waiting and not self.blocked and self._read_head():
            if side.waiting and side.state == IDLE and not self._host.turns.take_now(_SUCCESSOR_COSTS):
                self._queued = True
                self.deadline = NEVER  # a client that waits for its turn is not late
                self._wait_for_turn()
                break
        self._advancing = False
        if side.waiting and (self._queued or side.state == WHOLE):
            self._reading.pause(SUCCESSOR)
            self._keep_unread()
        elif side.state in (IDLE, BODY):  # a begun request is read to its end
            self._reading.resume(SUCCESSOR)

    def _wait_for_turn(self) -> None:
        """Stop reading this client until the other clients of the worker had a turn."""
        if not self._reading.paused & TURN:
            self._reading.pause(TURN)
            self._host.turns.wait_for(self._take_turn)

    def _take_turn(self) -> None:
        self._reading.resume(TURN)
        queued, self._queued = self._queued, False
        if queued and self._side.state == IDLE and not self.gone:
            self._next()

    def _keep_unread(self) -> None:
        """Count the received bytes as unread. If there is no room, drop them and close after this request."""
        side = self._side
        if not self._kept.keep_unread(len(side.waiting)):
            side.waiting = b""
            self._closing = True

    def _read_head(self) -> bool:
        """Read the next request's head and begin the request; return whether one was complete."""
        side = self._side
        try:
            cut = side.head()
        except Refusal as refusal:
            self.turn_away(refusal, side.waiting)
            return False
        if cut is None:
            if side.fresh:
                self.deadline = self._host.clock.now + self._limits.head_s
            if not self._kept.keep_unread(len(side.waiting)):
                self.turn_away(full(), side.waiting)
            return False
        if self._kept.unread:
            self._kept.keep_unread(0)
        call_head, length = self._host.heads.read_cut(cut), cut[2]
        routed = call_head.routed
        if length < 0:
            self._begin(call_head, routed.length)
        elif routed.chunked or routed.length is not None:
            self.turn_away(MalformedRequest("The length of the body is stated twice."), cut[0])
        else:
            self._begin(call_head, length)
        return True

    def turn_away(self, refusal: Refusal, head: bytes = b"") -> None:
        """Answer bytes that are not a valid request with a refusal, and close."""
        self._kept.keep_unread(0)
        self._begin(unreadable(head, refusal), None)

    def _begin_asked(self, opening: SocketOpening) -> None:
        self._asked = None
        self._kept.keep_unread(0)
        self._reading.resume(SUCCESSOR)
        self._begin(opening.head(self._host.heads), len(self._side.waiting))

    def _begin(self, head: CallHead, length: int | None) -> None:
        self.exchange = exchange = self._host.exchange(self, head)
        routed = head.routed
        self.deadline = NEVER
        body = self.body
        body.length, body.failure, body.long, body.invited = length, None, False, False
        if routed.fatal:
            self._closing = True
            self._side.refuse()
        elif length or routed.chunked:
            self._begin_body(routed, length or 0)
        else:
            self._side.request(0, False)
        self._host.tell(exchange)

    # bodies

    def _begin_body(self, routed: RoutedHead, length: int) -> None:
        """Store the body's bytes that came with the head; refuse a body that is too large."""
        side = self._side
        try:
            payload = side.request(length, routed.chunked)
        except MalformedRequest as refusal:
            self._fail_body(refusal)
            return
        if routed.buffered and max(length, len(payload)) > self._limits.body_bytes_max:
            if is_long_form(routed.route, routed.form) and length <= self._limits.form_bytes_max:
                self.body.long = True
            else:
                self.body.failure = RequestTooLarge()
        if side.state == BODY:
            self.body.size = 0
            self._left_s = _RUNS
            self._buffered = routed.buffered and not self.body.long
            self.deadline = self._host.clock.now + self._limits.body_s
            if payload:
                self._keep(payload)
        elif payload:
            self.body.add(payload)

    def _take_body(self, payload: bytes) -> None:
        """Process a received part of a body, and the body's end."""
        state = self._side.state
        if self.exchange is None:
            self._drop(len(payload))
        elif payload and (refusal := self._keep(payload)) is not None:
            self._fail_body(refusal)
        elif state == WHOLE:
            self.deadline = NEVER
            sink, self._sink = self._sink, None
            if sink is not None:
                sink.end_request()
            self.body.wake()
        elif self.body.enough:
            self.body.wake()

    def _keep(self, payload: bytes) -> Refusal | None:
        """Forward or buffer a part of a body; return a refusal if the body is too large."""
        body = self.body
        body.size += len(payload)
        if body.form is not None:
            refusal = body.refusal_of(payload, self._side.state == WHOLE)
            if refusal is not None:
                return refusal
        if not self._buffered:  # a forwarded body has no maximum size, only a minimum speed
            self.deadline += len(payload) / self._limits.body_bytes_per_s_min
        elif body.size > self._limits.body_bytes_max:
            return RequestTooLarge()
        if self._sink is not None:
            self._sink.send_part(payload)
        else:
            body.add(payload)
            if not body.awaited:
                self._reading.pause(UNWANTED)
            elif not body.afford():
                return full()
        return None

    def _fail_body(self, refusal: Refusal) -> None:
        """End the present body with a refusal: its handler fails, and the connection closes afterwards."""
        self._closing = True
        if self._side.state == BODY:
            self._side.refuse()
        self._sink = None
        self.deadline = NEVER
        if self.body.fail(refusal):
            return
        if self.exchange is not None:
            self.exchange.body_failed(refusal)
        else:
            self._linger()

    def _drop(self, size: int) -> None:
        """Discard `size` received bytes of an answered request's body; close if the maximum is exceeded."""
        self._discarded += size
        if self._discarded > self._limits.discarded_bytes_max:
            self._linger()
        elif self._side.state == IDLE:
            self._next()

    # between requests, and the end

    def _next(self) -> None:
        if self._closing:
            self._linger()
            return
        self.idle_since = self._host.clock.now
        if self.blocked:  # a client that does not read its answers gets no more requests served
            self._reading.pause(SLOW_CLIENT)
            self._keep_unread()
            return
        self.deadline = self.idle_since + self._limits.keep_alive_s
        if self._asked is not None:
            self._begin_asked(self._asked)
        elif self._side.waiting:
            self._advance()
        elif self._reading.paused:
            self._reading.resume(ANYTHING)

    def _linger(self, organization_id: int = 0) -> None:
        """Close the sending side and read on for a while, as closing at once could destroy the answer.

        The rest of a refused body is read only for a limited number of clients.
        """
        self._kept.keep_unread(0)
        unread = self._side.state in (BODY, DISCARDING, BROKEN) and not self._ended
        self._side.close()
        self._discarded = 0
        self._set_deadline(self._limits.linger_s)
        if not self._ended and self.transport.can_write_eof():
            self.transport.write_eof()
            if not unread or self._host.lingering.acquire(organization_id):
                self._lingers = organization_id if unread else _NOBODY
                self._reading.resume(ANYTHING)
            else:
                self._reading.pause(UNWANTED)
        else:
            self.transport.close()

    def _set_deadline(self, within_s: float) -> None:
        """Set a deadline in `within_s` seconds, unless the deadline of a slowly reading client is running."""
        if not self.blocked:
            self.deadline = self._host.clock.now + within_s
