"""One client's socket: heads and bodies come in, answers go out, in order, one at a time.

A request behind one in progress waits unread. Whatever is wrong with it is said after the
answer in front of it. Framing is `ClientSide`'s, what a request means is the story's affair: here
are flow, deadlines, and the end of a connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Protocol

from gateway.core.model import Caller
from gateway.core.wait import Wait
from gateway.errors import Overloaded, Refusal, RequestTooLarge
from gateway.http.buffers import Buffers, PartialHead
from gateway.http.client_side import ClientSide
from gateway.http.clock import NEVER, Clock
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.framing import Malformed
from gateway.http.limits import HttpLimits
from gateway.http.link import Link
from gateway.http.plan import Plan, Planner, family_of_head
from gateway.http.reading import SLOW_UPSTREAM, SUCCESSOR, TURN, UNWANTED, Reading
from gateway.http.request import MalformedRequest, RequestTimeout, cut_length
from gateway.http.request_body import RequestBody
from gateway.http.states import BODY, BROKEN, CLOSING, DISCARDING, IDLE, WHOLE
from gateway.http.turns import Turns

# What one client may have done in one go: after so many heads, or bytes of one read, others come first.
TURN_HEADS_MAX = 16
TURN_BYTES_MAX = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
_RUNS = -1.0  # a body's deadline, which is not stopped


class Host(Protocol):
    """What a connection needs of its worker."""

    planner: Planner
    limits: HttpLimits
    buffers: Buffers
    clock: Clock
    turns: Turns
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
        "_advancing", "_body", "_buffered", "_closing", "_discarded", "_ended", "_head", "_host",
        "_left_s", "_limits", "_reading", "_side", "_sink", "_write_wait", "blocked", "deadline", "exchange",
        "gone", "idle_since", "transport",
    )  # fmt: skip

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limits = host.limits
        self._side = ClientSide(host.limits)
        self.transport: Any = None
        self.exchange: Exchange | None = None
        self.deadline = self.idle_since = NEVER
        self.blocked = self.gone = False
        self._buffered = False
        self._reading = Reading(None)
        self._advancing = self._closing = self._ended = False
        self._left_s = _RUNS
        self._body = RequestBody(host.buffers)
        self._head = PartialHead(host.buffers)
        self._discarded = 0
        self._sink: Link | None = None
        self._write_wait: Wait[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Accept, unless there are too many."""
        self.transport = transport
        self._reading = Reading(transport)
        transport.set_write_buffer_limits(self._limits.client_buffer_bytes_max)
        if self._host.opened(self):
            self.idle_since = self._host.clock.now
            self.deadline = self._host.clock.now + self._limits.head_s

    def data_received(self, data: bytes) -> None:
        """Take in bytes of a head, of a body, or of what comes later."""
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
            except Malformed as error:
                self._fail_body(MalformedRequest(f"The body is not chunked as it says: {error}."))
            else:
                self._take_body(payload)
        elif state == WHOLE:
            side.receive(data)
            self._reading.pause(SUCCESSOR)
        elif state == CLOSING:
            self._count_discarded(len(data))
        else:
            self._reading.pause(SUCCESSOR)  # nothing behind this is read

    def eof_received(self) -> bool:
        """The client has said everything; it may still read, unless the route says that is leaving."""
        exchange = self.exchange
        if exchange is None or self._side.state == BODY:
            return False
        self._ended = self._closing = True
        return exchange.plan.route is None or exchange.plan.route.on_disconnect != "abort"

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone. What it sent of its request stays what it was."""
        self.gone = True
        self._reading.close()
        self.deadline = NEVER
        self._sink = None
        self._head.keep(0)
        self._host.closed(self)
        if self.exchange is not None:
            self.exchange.client_gone(self._host.clock, self._limits)
        write_wait, self._write_wait = self._write_wait, None
        if write_wait is not None:
            write_wait.set(None)  # nobody reads slowly any more: an answer that is drained goes on
        self._body.fail(ClientGone())

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self.blocked = True
        self.deadline = self._host.clock.now + self._limits.client_write_s

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.blocked = False
        waits = self.exchange is not None and self._side.state != BODY
        self.deadline = NEVER if waits else self._host.clock.now + self._limits.body_s
        wait, self._write_wait = self._write_wait, None
        if wait is not None:
            wait.set(None)
        elif self._side.state == IDLE and self._side.waiting:
            self._advance()

    # what the exchange asks of its connection

    @property
    def address(self) -> str:
        """Where the client is, empty where its socket has no address."""
        peer = self.transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    def write(self, data: bytes) -> None:
        """Send bytes to the client; nothing once it is gone."""
        if not self.gone:
            self.transport.write(data)

    def writable(self) -> Wait[None]:
        """Wait until the client has caught up or is gone."""
        wait: Wait[None] = Wait()
        if self.gone or not self.blocked:
            wait.set(None)
        else:
            self._write_wait = wait
        return wait

    def body_arrival(self, bytes_max: int) -> Wait[None]:
        """Ask for the rest of the body, or for more of it than `bytes_max`.

        Fails with a `Refusal` or `ClientGone`.
        """
        assert self.exchange is not None
        body = self._body
        wait = body.arrival(self.exchange.caller, bytes_max)
        if self._side.state != BODY or body.enough:
            body.wake()
        elif not body.afford():
            self._fail_body(_full())
        self._reading.resume(UNWANTED)
        return wait

    def body_soon(self, caller: Caller) -> Wait[None] | None:
        """Wait a moment for a body that is on its way, where it is announced, small, and sent unasked.

        None where it is not, and while much is kept: nobody is refused for bytes nobody admitted.
        """
        exchange, limits = self.exchange, self._limits
        assert exchange is not None
        length = exchange.body_length
        if length is None or length > limits.collected_bytes_max or exchange.plan.expects:
            return None
        if self._host.buffers.pressed or self.gone:
            return None
        wait = self._body.soon(caller, length, limits.body_grace_s)
        self._reading.resume(UNWANTED)
        return wait

    def body(self) -> bytes:
        """The body bytes that have arrived; they are given away."""
        return self._body.take()

    @property
    def kept(self) -> int:
        """Bytes of the body that its caller's budget holds."""
        return self._body.kept

    def let_go(self) -> None:
        """What was kept of the body is kept no longer."""
        self._body.let_go()

    @property
    def body_complete(self) -> bool:
        """Whether the present request has arrived in full."""
        return self._side.state == WHOLE

    @property
    def reusable(self) -> bool:
        """Whether another request may follow, once what is left of this one's body is dropped."""
        if self._closing or self._host.draining:
            return False
        return self._side.state == WHOLE or self._side.droppable

    def stream_body(self, link: Link) -> None:
        """Send what comes of the body from now on into a link, at the link's speed."""
        self._sink = link
        link.source = self
        self._reading.resume(UNWANTED)

    def pause_body(self) -> None:
        """The upstream reads slowly, which costs its client no time."""
        self._reading.pause(SLOW_UPSTREAM)
        if self._side.state == BODY and not self.blocked:
            now = self._host.clock.now
            self._left_s = self.deadline - now
            self.deadline = now + self._limits.look_s

    def resume_body(self) -> None:
        """The upstream has caught up."""
        if self._side.state == BODY and self._left_s >= 0:
            self.deadline = self._host.clock.now + self._left_s
        self._left_s = _RUNS
        self._reading.resume(SLOW_UPSTREAM)

    def finish(self, keep_alive: bool) -> None:
        """The answer is written. Go on to the next request, or close once the client has read it."""
        self.let_go()
        self.exchange = None
        self._sink = None
        self._body.forget()
        if self.gone:
            return
        side = self._side
        if not keep_alive or self._closing or side.state == BROKEN:
            self._linger()
            return
        side.answered()
        if side.state == DISCARDING:
            self._discarded = 0
            self.deadline = self._host.clock.now + self._limits.body_s
            self._reading.resume(UNWANTED | SLOW_UPSTREAM)
        else:
            self._next()

    def cut(self, reset: bool) -> None:
        """Break the connection so that the client cannot take what it has for a complete answer."""
        self.let_go()
        self.exchange = None
        if self.gone:
            return
        self._side.close()
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
        side = self._side
        if side.state == IDLE:
            if side.waiting:
                self._refuse(RequestTimeout(), side.waiting)
            else:
                self.transport.close()
        elif side.state == BODY and self._left_s >= 0 and not self.blocked:
            self._look()
        elif side.state == BODY and not self.blocked:
            self._fail_body(RequestTimeout("The body did not arrive in time."))
        else:
            self.transport.abort()

    def _look(self) -> None:
        """See whether a client is still there that is not read; one that has ended is read to its end."""
        exchange, reading = self.exchange, self._reading
        assert exchange is not None
        assert exchange.caller is not None
        if reading.is_left():
            self.transport.abort()
        elif reading.is_ended() and not self._host.buffers.pressed:
            self._body.count(exchange.caller, reading.unread())
            reading.resume(SLOW_UPSTREAM)
        else:
            self.deadline = self._host.clock.now + self._limits.look_s

    def turn_away(self, refusal: Refusal) -> None:
        """Refuse a connection before its first byte, and close it."""
        self._refuse(refusal)

    def shut(self) -> None:
        """Close as soon as no request is in progress."""
        self._closing = True
        if self._side.state == IDLE and not self._side.waiting:
            self.transport.close()

    # heads

    def _advance(self) -> None:
        """Read heads from what arrived until a request is in progress or more bytes are needed."""
        if self._advancing:
            return
        side, heads, later = self._side, 0, False
        self._advancing = True
        while side.state == IDLE and side.waiting and not later:
            later = self.blocked or heads == TURN_HEADS_MAX  # it reads no answers, or others come first
            heads += 1
            if not later and not self._read_head():
                break
        self._advancing = False
        if later:
            self._reading.pause(SUCCESSOR)
            if not self.blocked:
                self._wait_for_turn()
        elif side.state == IDLE:
            self._reading.resume(SUCCESSOR)
        elif side.state == WHOLE and side.waiting:
            self._reading.pause(SUCCESSOR)

    def _wait_for_turn(self) -> None:
        """Read nothing more of this client until others had their turn."""
        if not self._reading.paused & TURN:
            self._reading.pause(TURN)
            self._host.turns.wait(self._take_turn)

    def _take_turn(self) -> None:
        self._reading.resume(TURN)
        if not self.gone and self._side.state == IDLE and self._side.waiting:
            self._advance()

    def _read_head(self) -> bool:
        side = self._side
        try:
            head = side.head()
        except Refusal as refusal:
            self._refuse(refusal, side.waiting)
            return False
        if not head:
            if side.fresh:
                self.deadline = self._host.clock.now + self._limits.head_s
            if not self._head.keep(len(side.waiting)):
                self._refuse(_full(), side.waiting)
            return False
        if self._head.kept:
            self._head.keep(0)
        head, length = cut_length(head)
        planner = self._host.planner
        plan = planner.known.get(head)
        if plan is None:
            plan = planner.plan(head)
        if length < 0:
            self._begin(plan, plan.length)
        elif plan.chunked or plan.length is not None:
            self._refuse(MalformedRequest("The length of the body is stated twice."), head)
        else:
            self._begin(plan, length)
        return True

    def _refuse(self, refusal: Refusal, head: bytes = b"") -> None:
        """Answer bytes that are not a request, and close."""
        self._head.keep(0)
        self._begin(Plan(family_of_head(head), refusal=refusal, fatal=True), None)

    def _begin(self, plan: Plan, length: int | None) -> None:
        self.exchange = exchange = self._host.exchange(self, plan)
        self.deadline = NEVER
        exchange.body_length = length
        if plan.fatal:
            self._closing = True
            self._side.refuse()
        elif length or plan.chunked:
            self._begin_body(exchange, plan, length or 0)
        else:
            self._side.request(0, False)
        self._host.tell(exchange)

    # bodies

    def _begin_body(self, exchange: Exchange, plan: Plan, length: int) -> None:
        side = self._side
        try:
            payload = side.request(length, plan.chunked)
        except Malformed as error:
            self._fail_body(MalformedRequest(f"The body is not chunked as it says: {error}."))
            return
        if plan.buffered and max(length, len(payload)) > self._limits.body_bytes_max:
            exchange.body_failure = RequestTooLarge()
        if side.state == BODY:
            self._body.size = 0
            self._left_s = _RUNS
            self._buffered = plan.buffered
            self.deadline = self._host.clock.now + self._limits.body_s
            if payload:
                self._keep(payload)
        elif payload:
            self._body.add(payload)

    def _take_body(self, payload: bytes) -> None:
        """Deal with what came of a body, and with its end. Each way on is a last step: a story runs in it."""
        state = self._side.state
        if self.exchange is None:
            self._drop(len(payload))
        elif payload and (refusal := self._keep(payload)) is not None:
            self._fail_body(refusal)
        elif state == WHOLE:
            self.deadline = NEVER
            sink, self._sink = self._sink, None
            if sink is not None:
                sink.end()
            self._body.wake()
        elif self._body.enough:
            self._body.wake()

    def _keep(self, payload: bytes) -> Refusal | None:
        """Pass a part of a body on, or keep it; or why that is too much."""
        body = self._body
        body.size += len(payload)
        if not self._buffered:  # what passes unread has no limit of size, but it has to keep coming
            self.deadline += len(payload) / self._limits.body_bytes_per_s_min
        elif body.size > self._limits.body_bytes_max:
            return RequestTooLarge()
        if self._sink is not None:
            self._sink.send(payload)
        else:
            body.add(payload)
            if not body.awaited:
                self._reading.pause(UNWANTED)
            elif not body.afford():
                return _full()
        return None

    def _fail_body(self, refusal: Refusal) -> None:
        """The body cannot be had: the story ends where it waits, the connection after it."""
        self._closing = True
        if self._side.state == BODY:
            self._side.refuse()
        self._sink = None
        self.deadline = NEVER
        if self._body.fail(refusal):
            return
        if self.exchange is not None:
            self.exchange.body_failed(refusal)
        else:
            self._linger()

    def _drop(self, size: int) -> None:
        """What came of a body whose request is answered."""
        self._discarded += size
        if self._discarded > self._limits.discarded_bytes_max:
            self._linger()
        elif self._side.state == IDLE:
            self._next()

    def _count_discarded(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self._limits.lingered_bytes_max:
            self.transport.abort()

    # between requests, and the end

    def _next(self) -> None:
        if self._closing:
            self._linger()
            return
        self.idle_since = self._host.clock.now
        self.deadline = self.idle_since + self._limits.keepalive_s
        if self._side.waiting:
            self._advance()
        elif self._reading.paused:
            self._reading.resume(SUCCESSOR | UNWANTED | SLOW_UPSTREAM)

    def _linger(self) -> None:
        """Say that nothing more comes, and read on for a while: closing at once could destroy the answer."""
        self._side.close()
        self._discarded = 0
        self.deadline = self._host.clock.now + self._limits.linger_s
        if not self._ended and self.transport.can_write_eof():
            self.transport.write_eof()
            self._reading.resume(SUCCESSOR | UNWANTED | SLOW_UPSTREAM)
        else:
            self.transport.close()


def _full() -> Refusal:
    return Overloaded("The gateway keeps as much of unfinished requests as it may.", retry_after_s=1)
