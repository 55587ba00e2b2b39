"""A client's side of a connection, framing alone: bytes go in, heads and payloads come out.

Where a request ends is decided here and nowhere else. Whether its client is still there, what the
request means and what becomes of its answer is not known here; there is no socket and no clock.
"""

from __future__ import annotations

from gateway.core.http_limits import HttpLimits
from gateway.errors import Refusal
from gateway.http.protocol.framing import HEAD_END, ChunkedBody, Malformed, has_bare_newline
from gateway.http.protocol.request import FieldsTooLarge, MalformedRequest, TargetTooLong
from gateway.http.protocol.states import (
    ANSWERED,
    BARE,
    BEGUN,
    BODY,
    CLOSED,
    DISCARDING,
    ENDED,
    FAULT,
    IDLE,
    INCOMING,
    WHOLE,
    IllegalEvent,
)

_UNREAD = (IDLE, WHOLE)
_READ_ON = (BODY, DISCARDING)


class ClientSide:
    """The requests of one connection, one after the other. `state` is one of `INCOMING`.

    `waiting` are bytes that are not read yet: of a head, or of whatever comes behind the present
    request. `fresh` says that the part of a head that is here has only just begun.
    """

    __slots__ = ("_chunked", "_left", "_limits", "_scanned", "fresh", "state", "waiting")

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.waiting = b""
        self._scanned = 0
        self.fresh = False
        self._left = 0
        self._chunked: ChunkedBody | None = None
        self.state = IDLE

    @property
    def droppable(self) -> bool:
        """Whether what is left of the present request can be read and dropped, within bounds."""
        if self.state == BODY:
            return self._chunked is None and self._left <= self._limits.discarded_bytes_max
        return self.state == WHOLE

    def receive(self, data: bytes) -> bytes:
        """Take in bytes; the payload in them, if a body is due. `MalformedRequest` for a broken body."""
        state = self.state
        if state in _UNREAD:
            self.waiting = self.waiting + data if self.waiting else data
        elif state in _READ_ON:
            return self._payload(data)
        return b""

    def head(self) -> bytes:
        """The next request's head with its blank line; empty while more is needed.

        Raises the `Refusal` of bytes that will never be one, and of an event that is out of turn
        `IllegalEvent`. A head is followed by `request`.
        """
        if self.state != IDLE:
            raise IllegalEvent(f"a head while a request is {self.state}")
        data = self.waiting
        if data[:2] == b"\r\n" and not self._scanned:  # one empty line in front is ignored: RFC 9112, 2.2
            data = data[2:]
        end = data.find(HEAD_END, self._scanned)
        if end < 0 or end > self._limits.head_bytes_max:
            self._check_part(data)
            return b""
        self.waiting = data[end + 4 :]
        self._scanned = 0
        return data[: end + 4]

    def request(self, length: int, chunked: bool) -> bytes:
        """Begin a request framed like this; the payload that is here already, or `MalformedRequest`."""
        data = self.waiting
        if not chunked:
            if len(data) >= length:
                self.state = INCOMING[self.state][BARE]
                self.waiting = data[length:]
                return data[:length]
            self._left = length
        else:
            self._chunked = ChunkedBody(self._limits, self._limits.small_chunks_max)
        self.state = INCOMING[self.state][BEGUN]
        self.waiting = b""
        return self._payload(data)

    def refuse(self) -> None:
        """Nothing after this can be read: the present request is never complete."""
        self.state = INCOMING[self.state][FAULT]
        self._forget()

    def answered(self) -> None:
        """The present request has its answer."""
        self.state = INCOMING[self.state][ANSWERED]

    def close(self) -> None:
        """No request follows, and what is left of this one is not read."""
        self.state = INCOMING[self.state][CLOSED]
        self._forget()

    def _check_part(self, data: bytes) -> None:
        """Keep the beginning of a head, unless it can be refused already."""
        limits = self._limits
        self.fresh = self._scanned == 0
        self._scanned = max(1, len(data) - 3)
        line_max = limits.request_line_bytes_max
        refusal: Refusal | None = None
        if len(data) > line_max and b"\r\n" not in data[: line_max + 2]:
            refusal = TargetTooLong()
        elif len(data) > limits.head_bytes_max:
            refusal = FieldsTooLarge()
        elif (data and not data[:1].isalpha() and data != b"\r") or has_bare_newline(data):
            refusal = MalformedRequest()
        self.waiting = data
        if refusal is not None:
            raise refusal

    def _payload(self, data: bytes) -> bytes:
        chunked = self._chunked
        if chunked is not None:
            try:
                data = chunked.feed(data)
            except Malformed as error:
                self.refuse()
                raise MalformedRequest(f"The body is not chunked as it says: {error}.") from error
            if chunked.done:
                self.waiting, self._chunked = chunked.rest, None
                self.state = INCOMING[self.state][ENDED]
            return data
        left = self._left - len(data)
        if left <= 0:
            if left < 0:
                self.waiting = data[left:]
                data = data[:left]
            left = 0
            self.state = INCOMING[self.state][ENDED]
        self._left = left
        return data

    def _forget(self) -> None:
        self.waiting = b""
        self._chunked = None
        self._scanned = 0
