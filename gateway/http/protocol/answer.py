"""Reads the head of an upstream's answer: checks and frames it, and removes fields that are not forwarded.

Upstreams may be hostile: a head that has two possible readings is `Malformed`, and its connection is closed.
An upstream's own limits and ids never reach a client as the gateway's. Fields that `Connection` names are
removed. Pure functions on bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import httptools

from gateway.core.families.header_fields import HOP_BY_HOP, OURS_PREFIX
from gateway.core.families.registry import ALL
from gateway.core.http_limits import HttpLimits
from gateway.http.protocol.framing import (
    ANSWER,
    ASKED,
    AWAITED,
    BARE,
    BEGUN,
    BODY,
    COMPLETE,
    ENDED,
    FAULT,
    HEAD,
    HEAD_END,
    IDLE,
    LAST_CHUNK,
    NEXT,
    OUTGOING,
    OVERTAKEN,
    OWED,
    SENT,
    ChunkedBody,
    IllegalEvent,
    Malformed,
    chunk,
    decimal,
    has_bare_newline,
)
from gateway.http.protocol.request import ParseCache

STATUS_LINES_BYTES_MAX = 64 * 1024
READ_LINES_BYTES_MAX = 2 * 1024 * 1024
LINE_BYTES_MAX = 256
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
# Statuses of an upstream that did not process the call: its own limits (429), or overload (529).
LIMITED = frozenset({429, 529})


def refuses(status: int) -> bool:
    """Return whether a status (4xx, or that of a limit) says that the upstream did not do the work."""
    return 400 <= status < 500 or status in LIMITED


_statuses: ParseCache[bytes, tuple[int, int, bytes]] = ParseCache(
    STATUS_LINES_BYTES_MAX, LINE_BYTES_MAX, 2, 384
)
_status_lines: Final = _statuses.known
# Kind and value of field lines seen before, checked by llhttp.
_lines: ParseCache[bytes, tuple[int, bytes]] = ParseCache(READ_LINES_BYTES_MAX, LINE_BYTES_MAX, 2, 320)
_read: Final = _lines.known

_NOT_RETURNED = HOP_BY_HOP | frozenset({b"ratelimit", b"ratelimit-policy", b"x-upstream-request-id"})
_LIMITS_PREFIXES = tuple({family.limits_prefix for family in ALL})

# Kinds of answer fields. Plain numbers: an enumeration costs a lookup a line.
PASS: Final = 0
DROP: Final = 1
CONNECTION: Final = 2
LENGTH: Final = 3
CODING: Final = 4
CONTENT_TYPE: Final = 5
CONTENT_ENCODING: Final = 6
REQUEST_ID: Final = 7
PLAIN_REQUEST_ID: Final = 8
USAGE_AMOUNT: Final = 9
DATE: Final = 10
LIMITS: Final = 11
SESSION: Final = 12
ADDRESS: Final = 13

_NOTED_AND_PASSED = frozenset({CONTENT_ENCODING, USAGE_AMOUNT, SESSION})
_KINDS = {
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"content-type": CONTENT_TYPE,
    b"content-encoding": CONTENT_ENCODING,
    b"x-request-id": REQUEST_ID,
    b"request-id": PLAIN_REQUEST_ID,
    b"x-usage-amount": USAGE_AMOUNT,
    b"date": DATE,
    **{family.session_field: SESSION for family in ALL if family.session_field},
    **{family.uploads.address: ADDRESS for family in ALL if family.uploads is not None},
    **{name: DROP for family in ALL if family.uploads is not None for name in family.uploads.hidden},
}
_FIELDS = {**dict.fromkeys(_NOT_RETURNED, DROP), **_KINDS}
_PREFIXES = {OURS_PREFIX: DROP, **dict.fromkeys(_LIMITS_PREFIXES, LIMITS)}
# Answer fields exposed to web pages (CORS), in addition to the safelisted ones.
EXPOSED = (
    b"date", b"request-id", b"retry-after", b"x-request-id", b"x-upstream-request-id", b"x-should-retry",
    b"x-tollkeeper-reason", b"x-tollkeeper-refused-by", b"x-tollkeeper-upstream", b"x-tollkeeper-budget",
    b"x-tollkeeper-model", b"x-tollkeeper-substituted-by",
    b"x-tollkeeper-tokens-remaining", b"x-tollkeeper-credits-remaining",
    b"ratelimit", b"ratelimit-policy",
    b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests",
    b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens",
)  # fmt: skip


EVENT_STREAM: Final = b"text/event-stream"


class AnswerHead:
    """The head of one final or interim answer.

    `text` is the status line for HTTP/1.1 and the forwarded fields. `length` is None if not stated; without
    `length` and `chunked` the body ends with the connection. `of_limits` are the lines about the upstream's
    own limits. `address` is the URL for an upload, which is rewritten before it is forwarded.
    """

    __slots__ = (
        "address", "chunked", "content_encoding", "content_type", "dated", "keep_alive", "length",
        "of_limits", "plain_request_id", "request_id", "session", "status", "text", "usage_amount",
    )  # fmt: skip

    def __init__(self, status: int, text: bytes, keep_alive: bool, of_limits: bytes = b"") -> None:
        self.status = status
        self.text = text
        self.keep_alive = keep_alive
        self.length: int | None = None
        self.chunked = self.dated = False
        self.of_limits = of_limits
        self.content_type = self.content_encoding = b""
        self.request_id = self.plain_request_id = self.usage_amount = b""
        self.session = self.address = b""

    @property
    def lines(self) -> list[bytes]:
        """The status line and the forwarded fields."""
        return self.text.split(b"\r\n")

    @property
    def limits(self) -> tuple[bytes, ...]:
        """The field lines in which the upstream states limits of its own."""
        return tuple(self.of_limits.split(b"\r\n")) if self.of_limits else ()


# The result of the optional C code for usual heads: end of the head, status, forwarded text, length or -1,
# chunked, dated, content type, content encoding, both ids, and the lines of the upstream's limits. The C code
# returns None for unusual heads; the Python code handles these, and is the definition.
_Answer = tuple[int, int, bytes, int, bool, bool, bytes, bytes, bytes, bytes, bytes]
_answer: Callable[[bytes, int], _Answer | None] | None
try:
    _heads = import_module("gateway.http.protocol._heads")
    _heads.know_fields(_FIELDS, _PREFIXES)
    _answer = _heads.read_answer_head
except ImportError:
    _answer = None


def _answer_of(found: _Answer) -> AnswerHead:
    """Return the head of an answer from what the parser in C found."""
    _, status, text, length, chunked, dated, content_type, coding, request_id, plain_request_id, limits = (
        found
    )
    answer = AnswerHead(status, text, True, limits)
    answer.length = length if length >= 0 else None
    answer.chunked, answer.dated = chunked, dated
    answer.content_type, answer.content_encoding = content_type, coding
    answer.request_id, answer.plain_request_id = request_id, plain_request_id
    return answer


def read_answer_head(head: bytes) -> AnswerHead:
    """Read the head of an answer up to its blank line; raise `Malformed` with the fault."""
    lines = head[:-4].split(b"\r\n")
    first = lines.pop(0)
    minor, status, status_line = _status_lines.get(first) or _status(first)
    kept = [status_line]
    answer = AnswerHead(status, b"", minor == 1)
    limits: list[bytes] = []
    nominated: set[bytes] = set()
    judged = False
    for line in lines:
        read = _read.get(line)
        if read is None:
            if not judged:
                _judge(head)
                judged = True
            read = _read_line(line)
        kind, value = read
        if kind == PASS:
            kept.append(line)
        elif kind == CONTENT_TYPE:
            answer.content_type = value
            kept.append(line)
        elif kind == LENGTH:
            answer.length = _length(answer, value)
        elif kind == CONNECTION:
            nominated |= _connection(answer, value, minor)
        elif kind == DATE:
            answer.dated = True
            kept.append(line)
        elif kind != DROP and _note(answer, kind, line, value, minor, limits):
            kept.append(line)
    if answer.chunked and answer.length is not None:
        raise Malformed("it states a length as well as a transfer-encoding")
    if nominated:
        kept = [line for line in kept if line[: line.find(b":")].lower() not in nominated]
        limits = [line for line in limits if line[: line.find(b":")].lower() not in nominated]
    answer.text, answer.of_limits = b"\r\n".join(kept), b"\r\n".join(limits)
    return answer


def _judge(head: bytes) -> None:
    """Check the syntax of a head with llhttp, so that its fields need no further check.

    Rules across fields, such as a repeated length or a length with a transfer coding, are checked by
    `read_answer_head`.
    """
    parser: Any = httptools.HttpResponseParser(object())
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # other code knows whether an upgrade was requested
    except httptools.HttpParserError as error:
        raise Malformed(str(error)) from error


def _read_line(line: bytes) -> tuple[int, bytes]:
    """Return the kind and value of a field line of a checked head, and cache the result."""
    name, _, value = line.partition(b":")
    read = (_kind(name.lower()), value.strip(b" \t"))
    _lines.keep(line, read)
    return read


def _kind(name: bytes) -> int:
    """Return the kind of the header field with this lower-case name, as one of the constants."""
    kind = _FIELDS.get(name, PASS)
    if kind != PASS:
        return kind
    return next((of_prefix for prefix, of_prefix in _PREFIXES.items() if name.startswith(prefix)), PASS)


def _status(line: bytes) -> tuple[int, int, bytes]:
    """Return from a status line the HTTP minor version, the status, and the line to send to the client."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Malformed("the status line is not one of HTTP/1.1")
    read = (int(match[1]), int(match[2]), b"HTTP/1.1 %b %b" % (match[2], match[3] or b""))
    _statuses.keep(line, read)
    return read


def _length(answer: AnswerHead, value: bytes) -> int:
    length = decimal(value)
    if length < 0 or answer.length is not None:
        raise Malformed("the content-length is not one decimal number")
    return length


def _note(  # noqa: PLR0917  # a field, and all that reads it
    answer: AnswerHead, kind: int, line: bytes, value: bytes, minor: int, limits: list[bytes]
) -> bool:
    """Store in `answer` the value of a field that the gateway uses, by its `kind`.

    Return whether the field is forwarded to the client. Lines about limits are added to `limits`.
    """
    if kind == LIMITS:  # the upstream's limits pass only if the upstream refuses the call
        limits.append(line)
        return answer.status in LIMITED
    if kind == REQUEST_ID:
        answer.request_id = value
    elif kind == PLAIN_REQUEST_ID:
        answer.plain_request_id = value
    elif kind == CONTENT_ENCODING:
        answer.content_encoding = value
    elif kind == USAGE_AMOUNT:
        answer.usage_amount = value
    elif kind == SESSION:
        answer.session = value
    elif kind == ADDRESS:
        answer.address = value
    else:
        if answer.chunked or value.lower() != b"chunked" or minor == 0:
            raise Malformed("the transfer-encoding is not chunked, once, in HTTP/1.1")
        answer.chunked = True
    return kind in _NOTED_AND_PASSED


def _connection(answer: AnswerHead, value: bytes, minor: int) -> set[bytes]:
    """Apply `close` and `keep-alive` in a `Connection` field to `answer`; return the field's other words."""
    if value == b"keep-alive" and minor == 1:
        return set()
    tokens = {token.strip(b" \t").lower() for token in value.split(b",")}
    if b"close" in tokens:
        answer.keep_alive = False
    elif minor == 0 and b"keep-alive" in tokens:
        answer.keep_alive = True
    return tokens - {b"", b"close", b"keep-alive"}


# The framing of a connection to an upstream: the promised and sent bytes of the request, and the answer.
#
# The connection is reused only if the whole request was sent, the answer is complete by its own framing, no
# bytes follow or may follow the answer, and neither side sent `close`. This code has no socket and no clock.

NO_BODY = frozenset({204, 304})
_UNCOUNTED = (
    1 << 61
)  # compiled, a number without an object; small chunks: a streamed answer may be made of them


class UpstreamSide:
    """The successive exchanges of one connection to an upstream.

    `request` is a state of the table `OUTGOING`, `answering` one of `ANSWER`; `answer` is the final head once
    it has arrived. If the request `upgrades`, a 101 answer switches to another protocol.
    """

    __slots__ = (
        "_answers_head",
        "_buffer",
        "_bytes_due",
        "_chunked",
        "_interim",
        "_limits",
        "_promised",
        "_says_close",
        "answer",
        "answering",
        "request",
        "surplus",
        "upgrades",
    )  # fmt: skip

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.upgrades = False
        self._answers_head = self._says_close = self.surplus = False
        self._buffer = b""
        self._interim = 0
        self._promised: int | None = 0  # bytes of the request's body that are still owed; None: chunks
        self._bytes_due: int | None = 0  # bytes of the answer's body that are still due; None: up to the end
        self._chunked: ChunkedBody | None = None
        self.answer: AnswerHead | None = None
        self.request = self.answering = IDLE

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another request: nothing of the present one is left."""
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
        """Return the bytes of a whole request; `opening` is its head without the fields that frame the body.

        `body` is None for a request without one. `answers_head`: the answer has no body, as for a HEAD
        request.
        """
        self._begin(BARE, answers_head)
        if body is None:
            return opening + b"\r\n"
        return b"%bcontent-length: %d\r\n\r\n%b" % (opening, len(body), body)

    def ask_before(self, opening: bytes, length: int) -> bytes:
        """Return the head of a request whose body is sent directly after it, as one part of `length` bytes.

        `opening` is the head without the fields that frame the body.
        """
        self._begin(BARE, False)
        return b"%bcontent-length: %d\r\n\r\n" % (opening, length)

    def ask_in_parts(self, opening: bytes, length: int | None, part: bytes, answers_head: bool) -> bytes:
        """Return the head of a request with the first `part` of its body; the rest follows.

        `opening` is the head without the fields that frame the body. A body without a `length` is sent in
        chunks.
        """
        self._begin(BEGUN, answers_head)
        self._promised = length
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        return b"%b%b\r\n\r\n%b" % (opening, framing, self.more(part))

    def more(self, part: bytes) -> bytes:
        """Return the bytes that send one more part of the request's body."""
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
        """End the request's body; return the bytes that mark it. Raise `IllegalEvent` if some are missing."""
        if self._promised:
            raise IllegalEvent(f"the end of a body with {self._promised} bytes missing")
        self.request = OUTGOING[self.request][ENDED]
        return LAST_CHUNK if self._promised is None else b""

    def _begin(self, event: str, answers_head: bool) -> None:
        self.request = OUTGOING[self.request][event]
        self.answering = ANSWER[self.answering][ASKED]
        self.answer = None
        self._answers_head = answers_head

    # the answer

    def open_stream(self) -> None:
        """Begin an answer that comes by another protocol, as a stream of events, until `end_stream`."""
        self._begin(BARE, False)
        self.answer = AnswerHead(200, b"HTTP/1.1 200 OK", True)
        self.answer.content_type = EVENT_STREAM
        self.answering = ANSWER[self.answering][HEAD]

    def end_stream(self) -> None:
        """End an answer that came by another protocol."""
        if self.answering == BODY:
            self._complete()

    def receive(self, data: bytes) -> bytes:
        """Process received bytes of the answer and return their payload; raise `Malformed` for a fault."""
        if self.answering == BODY:
            return self._body(data)
        if self.answering == AWAITED:
            return self._head(data)
        self.surplus = self.surplus or bool(data)
        return b""

    def close(self, clean: bool) -> bool:
        """Process the upstream's close; return whether it completes an answer that states no length.

        `clean` is False if the connection broke.
        """
        self._says_close = True
        if clean and self.answering == BODY and self._bytes_due is None and self._chunked is None:
            self._complete()
            return True
        return False

    def give_up(self) -> None:
        """Mark request and answer as faulty, so that the connection is not used again."""
        self.request = OUTGOING[self.request][FAULT]
        self.answering = ANSWER[self.answering][FAULT]

    def be_ready(self) -> bool:
        """Prepare the connection for the next exchange; return False if the connection cannot be reused."""
        if not self.reusable:
            return False
        self.request = OUTGOING[self.request][NEXT]
        self.answering = ANSWER[self.answering][NEXT]
        self._chunked = None
        return True

    def _head(self, data: bytes) -> bytes:
        """Read an answer's head after interim answers; return the bytes behind it, b"" while incomplete."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        limits = self._limits
        found = None if _answer is None else _answer(data, limits.answer_head_bytes_max)
        if found is not None:
            return self._begin_final(_answer_of(found), data, found[0])
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
        if status == 101 and self.upgrades:
            self.answer, self._bytes_due = answer, None
            self.answering = ANSWER[self.answering][HEAD]
            return data[at:]
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > limits.interim_answers_max:
                raise Malformed("an upgrade nobody asked for, or too many interim answers")
            self._says_close = self._says_close or not answer.keep_alive
            return self._head(data[at:]) if len(data) > at else b""
        return self._begin_final(answer, data, at)

    def _begin_final(self, answer: AnswerHead, data: bytes, at: int) -> bytes:
        """Process the head of a final (not 1xx) answer, which ends in `data` at position `at`.

        Return the payload of the bytes after the head.
        """
        limits, status = self._limits, answer.status
        self._interim = 0
        self.answer = answer
        self.answering = ANSWER[self.answering][HEAD]
        if self._answers_head or status in NO_BODY:
            self._bytes_due = 0
            # Some upstreams send a body here, perhaps late: the connection must not be reused.
            self._says_close = self._says_close or self._answers_head or answer.chunked or bool(answer.length)
        elif answer.chunked:
            self._chunked = ChunkedBody(limits, _UNCOUNTED)
        else:
            self._bytes_due = answer.length
        return self._body(data[at:])

    def _body(self, data: bytes) -> bytes:
        """Return the bytes of `data` that belong to the body; note its end, and surplus bytes."""
        chunked = self._chunked
        if chunked is not None:
            data = chunked.feed(data)
            if chunked.done:
                self.surplus = bool(chunked.rest)
                self._complete()
        elif self._bytes_due is not None:
            left = self._bytes_due - len(data)
            if left <= 0:
                self._complete()
                if left < 0:
                    self.surplus = True
                    data = data[:left]
            self._bytes_due = left
        return data

    def _complete(self) -> None:
        self.answering = ANSWER[self.answering][ENDED]
        self.request = OUTGOING[self.request][OVERTAKEN]
