"""Finds the end of a message: the blank line after a head, the bytes of a length, the last chunk.

llhttp checks the syntax of heads. The extent of bodies is decided here, because llhttp does not report where
a message ends, and stops at the head of an `Upgrade` request. This module knows no routes, callers or meters.
"""

from __future__ import annotations

import re

from gateway.core.http_limits import HttpLimits

HEAD_END = b"\r\n\r\n"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
SMALL_CHUNK_BYTES = 64
LENGTH_DIGITS_MAX = 15
SIZE_DIGITS_MAX = 7  # of a chunk that is processed as a whole
_AT_SIZE, _AT_CHUNK_END, _AT_TRAILER = 0, -1, -2


class Malformed(Exception):
    """The received bytes are not a valid HTTP/1.1 message."""


def decimal(digits: bytes) -> int:
    """Return the number in `digits`; -1 unless these are 1 to `LENGTH_DIGITS_MAX` decimal digits."""
    return int(digits) if len(digits) <= LENGTH_DIGITS_MAX and digits.isdigit() else -1


def has_bare_newline(data: bytes) -> bool:
    """Return whether a line of a head ends in LF without CR; the gateway would wait for its end forever."""
    return data.count(b"\n") != data.count(b"\r\n")


class ChunkedBody:
    """Decoder of one chunked body (RFC 9112, 7.1), strict and bounded.

    After the last chunk `done` is True and `rest` holds the bytes after the body. Chunk extensions and
    trailers are checked, counted and dropped. Each chunk costs time, so the number of chunks is limited to
    `small_max`, plus one for each `SMALL_CHUNK_BYTES` of payload.
    """

    __slots__ = (
        "_bytes_due",
        "_extension_max",
        "_line_max",
        "_pending",
        "_small",
        "_trailer_max",
        "done",
        "rest",
    )

    def __init__(self, limits: HttpLimits, small_max: int) -> None:
        self._line_max = limits.chunk_line_bytes_max
        self._extension_max = limits.chunk_extension_bytes_max
        self._trailer_max = limits.trailer_bytes_max
        self._small = small_max
        self._bytes_due = _AT_SIZE
        self._pending = b""
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Decode the next bytes and return their payload; raise `Malformed` if they are not chunks."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        elif self._bytes_due == _AT_SIZE:
            begins = self._whole(data)
            if begins:
                return data[begins:-2]
        parts: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.done:
            if self._bytes_due > 0:
                end = at + self._bytes_due
                if end > size:
                    parts.append(data[at:])
                    self._bytes_due = end - size
                    break
                parts.append(data[at:end])
                at = end
                self._bytes_due = _AT_CHUNK_END
            else:
                at = self._line(data, at)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _whole(self, data: bytes) -> int:
        """Return where the payload starts if `data` is exactly one chunk, the usual case; otherwise 0."""
        chunk_size, at, last = 0, 0, len(data) - 4
        while at <= SIZE_DIGITS_MAX and at < last:  # compiled, this makes no objects
            digit = data[at]
            if 48 <= digit <= 57:
                chunk_size = chunk_size * 16 + digit - 48
            elif 97 <= digit <= 102:
                chunk_size = chunk_size * 16 + digit - 87
            else:
                break
            at += 1
        left = self._small + chunk_size // SMALL_CHUNK_BYTES - 1
        if not at or chunk_size != last - at or chunk_size == 0 or left < 0:
            return 0
        if data[at] != 13 or data[at + 1] != 10 or data[last + 2] != 13 or data[last + 3] != 10:
            return 0
        self._small = left
        return at + 2

    def _line(self, data: bytes, at: int) -> int:
        """Read a line of the framing at `at`, such as a chunk's size; return the position after the line."""
        end = data.find(b"\n", at) - 1
        if end < -1:
            self._pending = self._part(data[at:])
            return len(data)
        if end < at or data[end : end + 1] != b"\r":
            raise Malformed("a line of a chunk's frame ends without CR")
        if self._bytes_due == _AT_CHUNK_END:
            if end != at:
                raise Malformed("a chunk is longer than its size")
            self._bytes_due = _AT_SIZE
        elif self._bytes_due == _AT_SIZE:
            self._bytes_due = self._size(data[at:end]) or _AT_TRAILER
        elif end == at:
            self.done = True
            self.rest = data[end + 2 :]
        else:
            self._trailer_max -= end + 2 - at
            if self._trailer_max < 0 or _TRAILER_LINE.fullmatch(data, at, end) is None:
                raise Malformed("a trailer is too long or not a field")
        return end + 2

    def _part(self, line: bytes) -> bytes:
        """Return an incomplete line, to be continued later; raise `Malformed` if it cannot become valid."""
        if (
            len(line) > self._line_max
            or b"\r" in line[:-1]
            or (self._bytes_due == _AT_CHUNK_END and line[:1] != b"\r")
        ):
            raise Malformed("a chunk's frame is too long or broken")
        return line

    def _size(self, line: bytes) -> int:
        """Return the size of a chunk from its line; raise Malformed if a bound is passed."""
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(line) > self._line_max:
            raise Malformed("a chunk size is not a hexadecimal number")
        extension = match[2]
        if extension is not None:
            self._extension_max -= len(extension)
            if self._extension_max < 0:
                raise Malformed("chunk extensions are too long")
        size = int(match[1], 16)
        self._small += size // SMALL_CHUNK_BYTES - 1
        if self._small < 0:
            raise Malformed("it has too many small chunks")
        return size


def chunk(payload: bytes) -> bytes:
    """Return a payload framed as one chunk; it must not be empty."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK = b"0\r\n\r\n"


# The progress of a message as tables: state, event, next state. An event that is not in the table is an
# error.
#
# A client's request has one table, for its bytes: whether the client is still connected is not a state of the
# framing. An exchange with an upstream has two, since an answer may end before its request.

# States.
IDLE = "idle"
BODY = "body"
WHOLE = "whole"
DISCARDING = "discarding"
BROKEN = "broken"
CLOSING = "closing"
OWED = "owed"
SENT = "sent"
GIVEN_UP = "given up"
AWAITED = "awaited"
COMPLETE = "complete"

# Events.
BARE = "a request with nothing behind its head"
BEGUN = "a request with a body"
ASKED = "a request"
ENDED = "the last byte of a message"
FAULT = "bytes that cannot be what they should"
ANSWERED = "the whole answer is written"
CLOSED = "nothing more is read"
HEAD = "a final answer's head"
OVERTAKEN = "the answer is whole before its request"
NEXT = "another exchange"


class IllegalEvent(Exception):
    """An event that is not allowed in the current state."""


class Row(dict[str, str]):
    """The allowed events of one state with the next states; any other event raises `IllegalEvent`."""

    def __missing__(self, event: str) -> str:
        raise IllegalEvent(f"{event}: none of {', '.join(self) or 'nothing'}")


# The request a client sends. Once answered, the rest of its body is read and dropped.
INCOMING = {
    IDLE: Row({BARE: WHOLE, BEGUN: BODY, FAULT: BROKEN, CLOSED: CLOSING}),
    BODY: Row({ENDED: WHOLE, ANSWERED: DISCARDING, FAULT: BROKEN, CLOSED: CLOSING}),
    WHOLE: Row({ANSWERED: IDLE, CLOSED: CLOSING}),
    DISCARDING: Row({ENDED: IDLE, FAULT: BROKEN, CLOSED: CLOSING}),
    BROKEN: Row({CLOSED: CLOSING}),
    CLOSING: Row({CLOSED: CLOSING}),
}

# The request an upstream is sent. A request that was given up is owed for ever.
OUTGOING = {
    IDLE: Row({BARE: SENT, BEGUN: OWED, FAULT: GIVEN_UP}),
    OWED: Row({ENDED: SENT, OVERTAKEN: GIVEN_UP, FAULT: GIVEN_UP}),
    SENT: Row({NEXT: IDLE, OVERTAKEN: SENT, FAULT: GIVEN_UP}),
    GIVEN_UP: Row({FAULT: GIVEN_UP}),
}

# The answer an upstream owes.
ANSWER = {
    IDLE: Row({ASKED: AWAITED, FAULT: BROKEN}),
    AWAITED: Row({HEAD: BODY, FAULT: BROKEN}),
    BODY: Row({ENDED: COMPLETE, FAULT: BROKEN}),
    COMPLETE: Row({NEXT: IDLE, FAULT: BROKEN}),
    BROKEN: Row({FAULT: BROKEN}),
}
