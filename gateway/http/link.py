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
from gateway.http.framing import HEAD_END, ChunkedBody, Malformed
from gateway.http.limits import HttpLimits

_NO_BODY = frozenset({204, 304})
_IDLE, _AWAITING, _BODY, _COMPLETE, _BROKEN = range(5)


class BodySource(Protocol):
    """Who streams a request body into a link: told to wait while the link cannot take more."""

    def pause_body(self) -> None:
        """Stop giving bytes."""

    def resume_body(self) -> None:
        """Go on."""


class Link(asyncio.Protocol):
    """A pooled connection. Its owner uses it for one exchange at a time.

    `failure` is set when the answer cannot be completed: before the head it is what the client
    is refused with, after the head it means the answer is cut.
    """

    __slots__ = (
        "_answers_head", "_buffer", "_chunked", "_clean_end", "_clock", "_gone", "_interim", "_left",
        "_limits", "_paused", "_payload", "_payload_bytes", "_state", "_wait", "answer", "deadline", "failure",
        "idle_since", "on_gone", "reused", "source", "transport", "wanted",
    )  # fmt: skip

    def __init__(self, clock: Clock, limits: HttpLimits, on_gone: Callable[[Link], None]) -> None:
        self._clock = clock
        self._limits = limits
        self.on_gone = on_gone
        self.transport: Any = None
        self.deadline = NEVER
        self.idle_since = 0.0
        self.reused = False
        self._gone = False
        self._reset()

    def _reset(self) -> None:
        self._state = _IDLE
        self._buffer = b""
        self._payload: list[bytes] = []
        self._payload_bytes = 0
        self._chunked: ChunkedBody | None = None
        self._left: int | None = 0
        self._interim = 0
        self._answers_head = False
        self._clean_end = False
        self._paused = False
        self._wait: Wait[None] | None = None
        self.answer: AnswerHead | None = None
        self.failure: Refusal | None = None
        self.source: BodySource | None = None
        self.wanted = True

    def begin(self, request: bytes, answers_head: bool) -> None:
        """Send a request's head, with its body or the beginning of it."""
        self._state = _AWAITING
        self._answers_head = answers_head
        self.deadline = self._clock.now + self._limits.upstream_first_byte_s
        if self._gone:
            self._fail(UpstreamUnreachable("The upstream closed its connection."))
        else:
            self.transport.write(request)

    def send(self, data: bytes) -> None:
        """Send more of a streamed body."""
        if not self._gone and self._state in (_AWAITING, _BODY):
            self.deadline = self._clock.now + self._limits.upstream_first_byte_s
            self.transport.write(data)

    async def head(self) -> AnswerHead:
        """The final head of the answer; the `Refusal` of an upstream that failed to give one."""
        while self.answer is None:
            if self.failure is not None:
                raise self.failure
            await self._arrival()
        return self.answer

    @property
    def complete(self) -> bool:
        """Whether the whole answer has arrived (its last bytes may still be unread here)."""
        return self._state == _COMPLETE

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another exchange."""
        answer = self.answer
        return self._state == _COMPLETE and not self._gone and answer is not None and answer.keep_alive

    def take(self) -> bytes:
        """The body bytes that have arrived since the last take, maybe none."""
        payload = self._payload
        if not payload:
            return b""
        self._payload = []
        self._payload_bytes = 0
        if self._paused and not self._gone:
            self._paused = False
            self.transport.resume_reading()
        return payload[0] if len(payload) == 1 else b"".join(payload)

    async def more(self) -> None:
        """Wait until there are body bytes, the answer is complete, or it is cut."""
        if not self._payload and self._state == _BODY:
            await self._arrival()

    def _arrival(self) -> Wait[None]:
        self._wait = wait = Wait[None]()
        return wait

    def release(self, now: float) -> None:
        """Become idle: ready for another exchange."""
        self._reset()
        self.deadline = NEVER
        self.idle_since = now
        self.reused = True

    def abandon(self) -> None:
        """Drop the connection, whatever it is doing."""
        self._wait = None
        self.source = None
        self._state = _BROKEN
        self.deadline = NEVER
        if not self._gone and self.transport is not None:
            self.transport.abort()

    def expire(self) -> None:
        """The deadline has passed."""
        if self._state == _AWAITING:
            self._fail(UpstreamTimeout())
        elif self._state == _BODY:
            self._fail(UpstreamTimeout("The upstream stopped in the middle of its answer."))

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the answer."""
        try:
            if self._state == _BODY:
                self._body(data)
            elif self._state == _AWAITING:
                self._head(data)
            else:
                self._surplus()
        except Malformed as error:
            self._fail(UpstreamUnreachable(f"The upstream's answer is not HTTP: {error}."))
        wait = self._wait
        if wait is not None and (self._payload or self._state != _BODY) and self._state != _AWAITING:
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
        if self._state == _AWAITING:
            self._fail(UpstreamUnreachable("The upstream closed its connection without an answer."))
        elif self._state == _BODY:
            if self._left is None and self._chunked is None and self._clean_end and error is None:
                self._state = _COMPLETE
            else:
                self._fail(UpstreamUnreachable("The upstream's answer broke off."))
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.set(None)
        self.on_gone(self)

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
        at = data.find(HEAD_END)
        if at < 0 or at > self._limits.answer_header_bytes_max:
            if len(data) > self._limits.answer_header_bytes_max:
                raise Malformed("its header fields are too large")
            self._buffer = data
            return
        self._buffer = b""
        answer = read_answer_head(data[: at + 4])
        rest = data[at + 4 :]
        if answer.status < 200:
            self._interim += 1
            if answer.status == 101 or self._interim > self._limits.interim_answers_max:
                raise Malformed("an upgrade nobody asked for, or too many interim answers")
            if rest:
                self._head(rest)
            return
        self.answer = answer
        self._state = _BODY
        if self._answers_head or answer.status in _NO_BODY:
            self._left = 0
        elif answer.chunked:
            limits = self._limits
            self._chunked = ChunkedBody(
                limits.chunk_line_bytes_max, limits.chunk_extension_bytes_max, limits.trailer_bytes_max
            )
        else:
            self._left = answer.length
        if rest or self._left == 0:
            self._body(rest)
        else:
            self.deadline = self._clock.now + self._limits.upstream_idle_s

    def _body(self, data: bytes) -> None:
        chunked, left = self._chunked, self._left
        if chunked is not None:
            data = chunked.feed(data)
            if chunked.done:
                self._complete(bool(chunked.rest))
        elif left is not None:
            left -= len(data)
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
        self._state = _COMPLETE
        self.source = None
        if surplus:
            self._surplus()

    def _surplus(self) -> None:
        """Bytes nobody asked for: this connection is never used again."""
        self._gone = True
        self.transport.abort()

    def _fail(self, failure: Refusal) -> None:
        self.failure = failure
        self._state = _BROKEN
        self.source = None
        self.deadline = NEVER
        if not self._gone:
            self.transport.abort()
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.set(None)
