"""One connection to an upstream: a request goes out, one answer comes in, nothing is left over.

The story of a request waits here twice: for the final head, then for body bytes. Bytes behind
a complete answer destroy the connection; they never reach the next client. Never knows
callers, meters or limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from gateway.core.wait import Wait
from gateway.errors import Refusal, UpstreamTimeout, UpstreamUnreachable
from gateway.http.answer import AnswerHead, read_answer_head
from gateway.http.clock import NEVER, Clock
from gateway.http.framing import HEAD_END, ChunkedBody, Malformed, has_bare_newline
from gateway.http.limits import HttpLimits

NO_BODY = frozenset({204, 304})
IDLE, AWAITING, BODY, COMPLETE, BROKEN = range(5)


class BodySource(Protocol):
    """Who streams a request body into a link: told to wait while the link cannot take more."""

    def pause_body(self) -> None:
        """Stop giving bytes."""

    def resume_body(self) -> None:
        """Go on."""


class Link(asyncio.Protocol):
    """A pooled connection, used for one exchange at a time.

    `answer` is the final head once it has arrived. `failure` is set when the answer cannot be
    completed: before the head it is what the client is refused with, after it the answer is cut.
    """

    __slots__ = (
        "_answers_head", "_buffer", "_chunked", "_clean_end", "_clock", "_gone", "_interim", "_left",
        "_limits", "_on_gone", "_paused", "_payload", "_payload_bytes", "_wait", "answer", "deadline",
        "failure", "idle_since", "source", "state", "transport",
    )  # fmt: skip

    def __init__(self, clock: Clock, limits: HttpLimits, on_gone: Callable[[Link], None]) -> None:
        self._clock = clock
        self._limits = limits
        self._on_gone = on_gone
        self.transport: Any = None
        self.deadline = NEVER
        self.idle_since = 0.0
        self.state = IDLE
        self._gone = self._clean_end = self._paused = self._answers_head = False
        self._buffer = b""
        self._payload: list[bytes] = []
        self._payload_bytes = 0
        self._interim = 0
        self._left: int | None = 0
        self._chunked: ChunkedBody | None = None
        self._wait: Wait[None] | None = None
        self.answer: AnswerHead | None = None
        self.failure: Refusal | None = None
        self.source: BodySource | None = None

    @property
    def open(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return not self._gone

    @property
    def complete(self) -> bool:
        """Whether the whole answer has arrived (its last bytes may still be unread here)."""
        return self.state == COMPLETE

    # what the story asks of its link

    def begin(self, request: bytes, answers_head: bool) -> None:
        """Send a request's head, with its body or the beginning of it."""
        self.state = AWAITING
        self.answer = None
        self._answers_head = answers_head
        self.deadline = self._clock.now + self._limits.upstream_first_byte_s
        if self._gone:
            self._fail(UpstreamUnreachable("The upstream closed its connection."))
        else:
            self.transport.write(request)

    def send(self, data: bytes) -> None:
        """Send more of a streamed body."""
        if not self._gone and self.state in (AWAITING, BODY):
            self.deadline = self._clock.now + self._limits.upstream_first_byte_s
            self.transport.write(data)

    def arrival(self) -> Wait[None]:
        """Wait until the head is there, or then for body bytes, the answer's end, or its failure."""
        wait: Wait[None] = Wait()
        self._wait = wait
        if self.failure is not None or self._payload or self.state == COMPLETE:
            wait.set(None)
        return wait

    def take(self) -> bytes:
        """The body bytes that have arrived since the last take, maybe none."""
        payload = self._payload
        if not payload:
            return b""
        self._payload = []
        self._payload_bytes = 0
        if self._paused:
            self._paused = False
            if not self._gone:
                self.transport.resume_reading()
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def release(self, now: float) -> bool:
        """Become idle, ready for another exchange; False where the connection cannot be used again."""
        answer = self.answer
        if self.state != COMPLETE or self._gone or answer is None or not answer.keep_alive or self._payload:
            return False
        self.state = IDLE
        self.deadline = NEVER
        self.idle_since = now
        self._wait = self._chunked = None
        return True

    def abandon(self) -> None:
        """Drop the connection, whatever it is doing."""
        self._wait = self.source = None
        self.state = BROKEN
        self.deadline = NEVER
        if not self._gone and self.transport is not None:
            self.transport.abort()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state == AWAITING:
            self._fail(UpstreamTimeout())
        elif self.state == BODY:
            self._fail(UpstreamTimeout("The upstream stopped in the middle of its answer."))

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the answer."""
        try:
            if self.state == BODY:
                self._body(data)
            elif self.state == AWAITING:
                self._head(data)
            else:
                self._drop()
        except Malformed as error:
            self._fail(UpstreamUnreachable(f"The upstream's answer is not HTTP: {error}."))
            return
        wait = self._wait
        if wait is not None and self.state != AWAITING:
            self._wait = None
            wait.set(None)
        if self._payload_bytes > self._limits.relay_buffer_bytes_max and not self._paused and not self._gone:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The upstream has said everything."""
        self._clean_end = True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Decide what the end means: complete, cut, or nothing at all (RFC 9112, 8)."""
        self._gone = True
        self.source = None
        if self.state == AWAITING:
            self._fail(UpstreamUnreachable("The upstream closed its connection without an answer."))
        elif self.state == BODY:
            if self._left is None and self._chunked is None and self._clean_end and error is None:
                self.state = COMPLETE
                self._wake()
            else:
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

    # the answer

    def _head(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        limits = self._limits
        at = data.find(HEAD_END)
        if at < 0 or at > limits.answer_header_bytes_max:
            if len(data) > limits.answer_header_bytes_max:
                raise Malformed("its header fields are too large")
            if has_bare_newline(data):
                raise Malformed("a line ends without CR")
            self._buffer = data
            return
        at += 4
        answer = read_answer_head(data[:at])
        status = answer.status
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > limits.interim_answers_max:
                raise Malformed("an upgrade nobody asked for, or too many interim answers")
            if len(data) > at:
                self._head(data[at:])
            return
        self._interim = 0
        self.answer = answer
        self.state = BODY
        if self._answers_head or status in NO_BODY:
            self._left = 0
        elif answer.chunked:
            self._chunked = ChunkedBody(
                limits.chunk_line_bytes_max, limits.chunk_extension_bytes_max, limits.trailer_bytes_max
            )
        else:
            self._left = answer.length
        self._body(data[at:])

    def _body(self, data: bytes) -> None:
        if self._chunked is not None:
            data = self._chunked.feed(data)
            if self._chunked.done:
                self._complete(bool(self._chunked.rest))
        elif self._left is not None:
            left = self._left - len(data)
            if left <= 0:
                self._complete(left < 0)
                if left < 0:
                    data = data[:left]
            self._left = left
        if data:
            self._payload.append(data)
            self._payload_bytes += len(data)
        self.deadline = self._clock.now + self._limits.upstream_idle_s

    def _complete(self, surplus: bool) -> None:
        self.state = COMPLETE
        self.source = None
        if surplus:
            self._drop()

    def _drop(self) -> None:
        """Bytes nobody asked for: this connection is never used again."""
        self._gone = True
        self.transport.abort()

    def _fail(self, failure: Refusal) -> None:
        self.failure = failure
        self.state = BROKEN
        self.source = None
        self.deadline = NEVER
        if not self._gone:
            self.transport.abort()
        self._wake()

    def _wake(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.set(None)
