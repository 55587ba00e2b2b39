"""One connection to an upstream: a request goes out, one answer comes in, nothing is left over.

the handling of a request waits here twice: for the final head, then for body bytes. Bytes behind
a complete answer destroy the connection; they never reach the next client. Never knows
callers, meters or limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from gateway.core.http_limits import HttpLimits
from gateway.core.wait import Wait
from gateway.errors import Refusal, UpstreamTimeout, UpstreamUnreachable
from gateway.http.fair_share import Turns
from gateway.http.protocol.answer import AnswerHead, UpstreamSide
from gateway.http.protocol.framing import AWAITED, BODY, COMPLETE, OWED, Malformed
from gateway.http.tally import NEVER, Clock


class _BodySource(Protocol):
    """Who streams a request body into a link: told to wait while the link cannot take more."""

    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...


# One read of any connection goes through this buffer, which bounds what comes ahead of a slow client.
_BUFFER = memoryview(bytearray(16 * 1024))


class Link(asyncio.BufferedProtocol):
    """A pooled connection, used for one exchange at a time. It feeds its `UpstreamSide`, which frames.

    `answer` is the final head once it has arrived. `failure` is set when the answer cannot be
    completed: before the head it is what the client is refused with, after it the answer is cut.
    """

    __slots__ = (
        "_clean_end", "_clock", "_gone", "_limits", "_on_gone", "_paused", "_payload", "_payload_bytes",
        "_queued", "_turns", "_wait", "address", "answer", "deadline", "failure", "idle_since", "side",
        "source", "transport",
    )  # fmt: skip

    def __init__(
        self, clock: Clock, turns: Turns, limits: HttpLimits, on_gone: Callable[[Link], None]
    ) -> None:
        self._clock = clock
        self._turns = turns
        self._limits = limits
        self._on_gone = on_gone
        self.side = UpstreamSide(limits)
        self.transport: Any = None
        self.address = ""
        self.deadline = NEVER
        self.idle_since = 0.0
        self._gone = self._clean_end = self._paused = self._queued = False
        self._payload: list[bytes] = []
        self._payload_bytes = 0
        self._wait: Wait[None] | None = None
        self.answer: AnswerHead | None = None
        self.failure: Refusal | None = None
        self.source: _BodySource | None = None

    @property
    def open(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return not self._gone

    @property
    def complete(self) -> bool:
        """Whether the whole answer has arrived (its last bytes may still be unread here)."""
        return self.side.answering == COMPLETE

    # what the handler asks of its link

    def begin_request(self, request: bytes) -> None:
        """Send what `side` made of a request, or of the beginning of one."""
        self.answer = None
        self.deadline = self._clock.now + self._limits.upstream_first_byte_s
        if self._gone:
            self._fail(UpstreamUnreachable("The upstream closed its connection."))
        else:
            self.transport.write(request)

    def send_part(self, part: bytes) -> None:
        """Send more of a body; nothing once nobody waits for it."""
        side = self.side
        if not self._gone and side.request == OWED:
            self.deadline = self._clock.now + self._limits.upstream_first_byte_s
            self.transport.write(side.more(part))

    def end_request(self) -> None:
        """The body is complete."""
        side = self.side
        if not self._gone and side.request == OWED:
            last = side.end()
            if last:
                self.transport.write(last)

    def arrival(self) -> Wait[None]:
        """Wait until the head is there, or then for body bytes, the answer's end, or its failure."""
        wait: Wait[None] = Wait()
        self._wait = wait
        if self.failure is not None or self._payload or self.side.answering == COMPLETE:
            wait.set(None)
        return wait

    def next_turn(self) -> Wait[None]:
        """Wait for a turn to do more with what was taken."""
        wait: Wait[None] = Wait()
        self._turns.wait_for(lambda: wait.set(None))
        return wait

    def take_payload(self) -> bytes:
        """The body bytes that have arrived since the last take, maybe none."""
        payload = self._payload
        if not payload:
            return b""
        self._payload = []
        self._payload_bytes = 0
        if self._paused:
            self.go_on()
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def hold(self) -> None:
        """Read no more until `go_on`: whoever gets the answer is slow, which is no fault of its upstream."""
        if not self._paused and not self._gone:
            self._paused = True
            self.transport.pause_reading()
            self.deadline = NEVER

    def go_on(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if not self._gone:
                self.transport.resume_reading()
                self.deadline = self._clock.now + self._limits.upstream_idle_s

    def release(self, now: float) -> bool:
        """Become idle, ready for another exchange; False where something of this one is left over."""
        if self._gone or self._payload or not self.side.be_ready():
            return False
        self.deadline = NEVER
        self.idle_since = now
        self._wait = self.source = None
        return True

    def abandon(self) -> None:
        """Drop the connection, whatever it is doing."""
        self._wait = self.source = None
        self.side.give_up()
        self.deadline = NEVER
        if not self._gone and self.transport is not None:
            self.transport.abort()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.side.answering == AWAITED:
            self._fail(UpstreamTimeout())
        elif self.side.answering == BODY:
            self._fail(UpstreamTimeout("The upstream stopped in the middle of its answer."))

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes are read to; they are taken over at once."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Take over what was read."""
        self.data_received(_BUFFER[:nbytes].tobytes())

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the answer. Its beginning is taken up at once, what follows in turn."""
        side = self.side
        begun = side.answering == BODY
        try:
            payload = side.receive(data)
        except Malformed as error:
            self._fail(UpstreamUnreachable(f"The upstream's answer is not HTTP: {error}."))
            return
        answering = side.answering
        self.answer = side.answer
        if payload:
            self._payload.append(payload)
            self._payload_bytes += len(payload)
        if answering == BODY:
            self.deadline = self._clock.now + self._limits.upstream_idle_s
        elif answering == COMPLETE:
            self.source = None
        if side.surplus:
            self._gone = True
            self.transport.abort()
        wait = self._wait
        if wait is not None and answering != AWAITED:
            if not begun or self._turns.take_now(len(data)):
                self._wait = None
                wait.set(None)
            elif not self._queued:
                self._queued = True
                self._turns.wait_for(self._take_turn)
        if self._payload_bytes > self._limits.relay_buffer_bytes_max and answering == BODY:
            self.hold()

    def eof_received(self) -> bool:
        """The upstream has said everything."""
        self._clean_end = True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Decide what the end means: complete, cut, or nothing at all (RFC 9112, 8)."""
        self._gone = True
        self.source = None
        side = self.side
        if side.close(self._clean_end and error is None):
            self._wake()
        elif side.answering == AWAITED:
            self._fail(UpstreamUnreachable("The upstream closed its connection without an answer."))
        elif side.answering == BODY:
            self._fail(UpstreamUnreachable("The upstream's answer broke off."))
        self._on_gone(self)

    def pause_writing(self) -> None:
        """The upstream reads slowly: let the client wait."""
        if self.source is not None:
            self.source.pause_body()

    def resume_writing(self) -> None:
        """The upstream has caught up."""
        if self.source is not None:
            self.source.resume_body()

    def _fail(self, failure: Refusal) -> None:
        self.failure = failure
        self.side.give_up()
        self.source = None
        self.deadline = NEVER
        if not self._gone:
            self.transport.abort()
        self._wake()

    def _take_turn(self) -> None:
        """What has come is taken up now, unless it was meanwhile."""
        self._queued = False
        if self._payload or self.side.answering == COMPLETE:
            self._wake()

    def _wake(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.set(None)
