"""An upstream's side of a connection, framing alone: what it was promised, what it got, what it answers.

The connection serves another exchange only when the request went out to its last byte, the answer
is complete by its own framing, nothing came behind it or could come late, and nobody said close.
Whoever drives this may know more, but never decides it. There is no socket and no clock.
"""

from __future__ import annotations

from gateway.core.http_limits import HttpLimits
from gateway.http.protocol.answer import AnswerHead, read_answer_head
from gateway.http.protocol.framing import (
    HEAD_END,
    LAST_CHUNK,
    ChunkedBody,
    Malformed,
    chunk,
    has_bare_newline,
)
from gateway.http.protocol.states import (
    ANSWER,
    AWAITED,
    BARE,
    BEGUN,
    BODY,
    COMPLETE,
    ENDED,
    FAULT,
    HEAD,
    IDLE,
    NEXT,
    OUTGOING,
    OVERTAKEN,
    OWED,
    SENT,
    IllegalEvent,
)

NO_BODY = frozenset({204, 304})
_UNCOUNTED = 1 << 62  # small chunks: a streamed answer may be made of them


class UpstreamSide:
    """The exchanges of one connection, one after the other.

    `request` is a state of `OUTGOING`, `answering` one of `ANSWER`; `answer` is the final head once
    it is here.
    """

    __slots__ = (
        "_answers_head", "_buffer", "_chunked", "_interim", "_left", "_limits", "_promised", "_says_close",
        "answer", "answering", "request", "surplus",
    )  # fmt: skip

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._answers_head = self._says_close = self.surplus = False
        self._buffer = b""
        self._interim = 0
        self._promised: int | None = 0  # bytes of the request's body that are still owed; None: chunks
        self._left: int | None = 0  # bytes of the answer's body that are still due; None: up to the end
        self._chunked: ChunkedBody | None = None
        self.answer: AnswerHead | None = None
        self.request = self.answering = IDLE

    @property
    def reusable(self) -> bool:
        """Whether nothing of the present exchange is left over on the connection."""
        answer = self.answer
        return (
            self.request == SENT
            and self.answering == COMPLETE
            and not self.surplus
            and not self._says_close
            and answer is not None
            and answer.keep_alive
        )

    # the request

    def ask(self, opening: bytes, body: bytes | None, answers_head: bool) -> bytes:
        """Send a whole request: its bytes. `opening` is its head but for the framing; None is no body."""
        self._begin(BARE, answers_head)
        if body is None:
            return opening + b"\r\n"
        return b"%bcontent-length: %d\r\n\r\n%b" % (opening, len(body), body)

    def ask_in_parts(self, opening: bytes, length: int | None, part: bytes, answers_head: bool) -> bytes:
        """Begin a request whose body goes on, framed by its length or, without one, in chunks."""
        self._begin(BEGUN, answers_head)
        self._promised = length
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        return b"%b%b\r\n\r\n%b" % (opening, framing, self.more(part))

    def more(self, part: bytes) -> bytes:
        """Send more of the body: its bytes on the wire."""
        if self.request != OWED:
            raise IllegalEvent(f"more of a body that is {self.request}")
        promised = self._promised
        if promised is None:
            return chunk(part) if part else b""
        if len(part) > promised:
            raise IllegalEvent(f"{len(part)} bytes of a body where {promised} are left")
        self._promised = promised - len(part)
        return part

    def end(self) -> bytes:
        """The body has come to its end: the bytes that say so."""
        if self._promised:
            raise IllegalEvent(f"the end of a body of which {self._promised} bytes are missing")
        self.request = OUTGOING[self.request][ENDED]
        return LAST_CHUNK if self._promised is None else b""

    def _begin(self, event: str, answers_head: bool) -> None:
        self.request = OUTGOING[self.request][event]
        self.answering = ANSWER[self.answering][BEGUN]
        self.answer = None
        self._answers_head = answers_head

    # the answer

    def receive(self, data: bytes) -> bytes:
        """Take in bytes of the answer; the payload in them. Raises `Malformed`."""
        if self.answering == BODY:
            return self._body(data)
        if self.answering == AWAITED:
            return self._head(data)
        self.surplus = self.surplus or bool(data)
        return b""

    def close(self, clean: bool) -> bool:
        """The upstream has closed; whether an answer that ends with its connection has come to its end."""
        self._says_close = True
        if clean and self.answering == BODY and self._left is None and self._chunked is None:
            self._complete()
            return True
        return False

    def give_up(self) -> None:
        """Whatever this was doing, nothing may follow it."""
        self.request = OUTGOING[self.request][FAULT]
        self.answering = ANSWER[self.answering][FAULT]

    def be_ready(self) -> bool:
        """Be ready for another exchange; False where something of this one is left over."""
        if not self.reusable:
            return False
        self.request = OUTGOING[self.request][NEXT]
        self.answering = ANSWER[self.answering][NEXT]
        self._chunked = None
        return True

    def _head(self, data: bytes) -> bytes:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        limits = self._limits
        at = data.find(HEAD_END)
        if at < 0 or at > limits.answer_head_bytes_max:
            if len(data) > limits.answer_head_bytes_max:
                raise Malformed("its header fields are too large")
            if has_bare_newline(data):
                raise Malformed("a line ends without CR")
            self._buffer = data
            return b""
        at += 4
        answer = read_answer_head(data[:at])
        status = answer.status
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > limits.interim_answers_max:
                raise Malformed("an upgrade nobody asked for, or too many interim answers")
            self._says_close = self._says_close or not answer.keep_alive
            return self._head(data[at:]) if len(data) > at else b""
        self._interim = 0
        self.answer = answer
        self.answering = ANSWER[self.answering][HEAD]
        if self._answers_head or status in NO_BODY:
            self._left = 0
            # Some upstreams send a body all the same, and it may come late: nobody may be next after it.
            self._says_close = self._says_close or self._answers_head or answer.chunked or bool(answer.length)
        elif answer.chunked:
            self._chunked = ChunkedBody(limits, _UNCOUNTED)
        else:
            self._left = answer.length
        return self._body(data[at:])

    def _body(self, data: bytes) -> bytes:
        chunked = self._chunked
        if chunked is not None:
            data = chunked.feed(data)
            if chunked.done:
                self.surplus = bool(chunked.rest)
                self._complete()
        elif self._left is not None:
            left = self._left - len(data)
            if left <= 0:
                self._complete()
                if left < 0:
                    self.surplus = True
                    data = data[:left]
            self._left = left
        return data

    def _complete(self) -> None:
        self.answering = ANSWER[self.answering][ENDED]
        self.request = OUTGOING[self.request][OVERTAKEN]
