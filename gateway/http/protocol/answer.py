"""One answer's head as its upstream sent it: checked, framed, and stripped of fields that end here.

A hostile upstream is expected: what cannot be read in one way only is `Malformed`, and its
connection is dropped. An upstream's own limits and ids never pass to a client as if they were ours.
Names that `Connection` nominates end here. Pure functions on bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import httptools

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
from gateway.http.protocol.request import HOP_BY_HOP, OURS_PREFIX, ParseCache

STATUS_LINES_BYTES_MAX = 64 * 1024
READ_LINES_BYTES_MAX = 2 * 1024 * 1024
LINE_BYTES_MAX = 256
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
# What an upstream answers where it takes nothing: its own limits refuse (429), or it is overloaded (529).
LIMITED = frozenset({429, 529})


def refuses(status: int) -> bool:
    """Return whether an answer says that its upstream made nothing."""
    return 400 <= status < 500 or status in LIMITED


_statuses: ParseCache[bytes, tuple[int, int, bytes]] = ParseCache(
    STATUS_LINES_BYTES_MAX, LINE_BYTES_MAX, 2, 384
)
_status_lines: Final = _statuses.known
# What field lines seen before are: their kind and their value, checked by llhttp.
_lines: ParseCache[bytes, tuple[int, bytes]] = ParseCache(READ_LINES_BYTES_MAX, LINE_BYTES_MAX, 2, 320)
_read: Final = _lines.known

_NOT_RETURNED = HOP_BY_HOP | frozenset({b"ratelimit", b"ratelimit-policy", b"x-upstream-request-id"})
_LIMITS_PREFIXES = tuple({one.limits_prefix for one in ALL})

# What an answer's field is to a gateway. Plain numbers: an enumeration costs a lookup a line.
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
    **{one.session_field: SESSION for one in ALL if one.session_field},
    **{one.uploads.address: ADDRESS for one in ALL if one.uploads is not None},
    **{name: DROP for one in ALL if one.uploads is not None for name in one.uploads.hidden},
}
_FIELDS = {**dict.fromkeys(_NOT_RETURNED, DROP), **_KINDS}
_PREFIXES = {OURS_PREFIX: DROP, **dict.fromkeys(_LIMITS_PREFIXES, LIMITS)}
# What a page may read of an answer's fields, beside those that any may.
EXPOSED = (
    b"date", b"request-id", b"retry-after", b"x-request-id", b"x-upstream-request-id", b"x-should-retry",
    b"x-tollkeeper-reason", b"x-tollkeeper-refused-by", b"x-tollkeeper-upstream", b"x-tollkeeper-budget",
    b"x-tollkeeper-tokens-remaining", b"x-tollkeeper-credits-remaining",
    b"ratelimit", b"ratelimit-policy",
    b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests",
    b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens",
)  # fmt: skip


class AnswerHead:
    """One final or interim answer head.

    `text` begins with our status line, for HTTP/1.1, then the fields that pass. `length` is
    None where none is stated; with neither `length` nor `chunked` the body ends with the
    connection. `of_limits` are those of its lines that tell of its upstream's own limits. An `address` where
    a file is to be sent does not pass as it is.
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
        """The status line and the fields that pass."""
        return self.text.split(b"\r\n")

    @property
    def limits(self) -> tuple[bytes, ...]:
        """The lines that tell of its upstream's own limits."""
        return tuple(self.of_limits.split(b"\r\n")) if self.of_limits else ()


# What most answers' heads say, by one pass in C, where that is compiled: where the head ends, its status,
# what of it passes, its length or -1, whether it is chunked and dated, its content type and coding, both ids,
# and the lines of its upstream's limits. It leaves what is unusual to the code without it, the definition.
_Answer = tuple[int, int, bytes, int, bool, bool, bytes, bytes, bytes, bytes, bytes]
_answer: Callable[[bytes, int], _Answer | None] | None
try:
    _heads = import_module("gateway.http.protocol._heads")
    _heads.know_fields(_FIELDS, _PREFIXES)
    _answer = _heads.read_answer_head
except ImportError:
    _answer = None


def _answer_of(found: _Answer) -> AnswerHead:
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
    """Read a head that ends in its blank line; `Malformed` says what is wrong with it."""
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
    """Check the syntax of a head with llhttp; each of its fields needs no further check.

    Rules over several fields at once (a length stated twice, or together with a coding) are applied, and
    refused, by `read_answer_head`.
    """
    parser: Any = httptools.HttpResponseParser(object())
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # whether anybody asked for one is known elsewhere
    except httptools.HttpParserError as error:
        raise Malformed(str(error)) from error


def _read_line(line: bytes) -> tuple[int, bytes]:
    """Return the kind and value of a line of a checked head; lines are remembered, within bounds."""
    name, _, value = line.partition(b":")
    read = (_kind(name.lower()), value.strip(b" \t"))
    _lines.keep(line, read)
    return read


def _kind(name: bytes) -> int:
    """Return the kind of a field of this name, which is in lower case."""
    kind = _FIELDS.get(name, PASS)
    if kind != PASS:
        return kind
    return next((of_prefix for prefix, of_prefix in _PREFIXES.items() if name.startswith(prefix)), PASS)


def _status(line: bytes) -> tuple[int, int, bytes]:
    """Return minor version, status and our status line; lines seen are remembered, within bounds."""
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
    """Store a meaningful field in the answer's head; return whether the field passes to the client."""
    if kind == LIMITS:  # an upstream's limits are not ours, but where it is the one that refuses
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
    """Honour `close` and `keep-alive`; the names that end here."""
    if value == b"keep-alive" and minor == 1:
        return set()
    tokens = {token.strip(b" \t").lower() for token in value.split(b",")}
    if b"close" in tokens:
        answer.keep_alive = False
    elif minor == 0 and b"keep-alive" in tokens:
        answer.keep_alive = True
    return tokens - {b"", b"close", b"keep-alive"}


# An upstream's side of a connection, framing alone: what it was promised, what it got, what it answers.
#
# The connection serves another exchange only when the request went out to its last byte, the answer
# is complete by its own framing, nothing came behind it or could come late, and nobody said close.
# The driver may know more, but never decides it. There is no socket and no clock.

NO_BODY = frozenset({204, 304})
_UNCOUNTED = (
    1 << 61
)  # compiled, a number without an object; small chunks: a streamed answer may be made of them


class UpstreamSide:
    """The exchanges of one connection, one after the other.

    `request` is a state of `OUTGOING`, `answering` one of `ANSWER`; `answer` is the final head once
    it is here. One that `upgrades` may be answered by 101: what follows is another protocol's.
    """

    __slots__ = (
        "_answers_head", "_buffer", "_chunked", "_interim", "_left", "_limits", "_promised", "_says_close",
        "answer", "answering", "request", "surplus", "upgrades",
    )  # fmt: skip

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.upgrades = False
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

    def ask_before(self, opening: bytes, length: int) -> bytes:
        """Send a whole request: the bytes in front of its body of so many, which goes out with them."""
        self._begin(BARE, False)
        return b"%bcontent-length: %d\r\n\r\n" % (opening, length)

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
        """End the body; return the bytes that mark its end."""
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

    def receive(self, data: bytes) -> bytes:
        """Process bytes of the answer, and return their payload. Raises `Malformed`."""
        if self.answering == BODY:
            return self._body(data)
        if self.answering == AWAITED:
            return self._head(data)
        self.surplus = self.surplus or bool(data)
        return b""

    def close(self, clean: bool) -> bool:
        """Process the upstream's close; return whether this completes an answer without a length."""
        self._says_close = True
        if clean and self.answering == BODY and self._left is None and self._chunked is None:
            self._complete()
            return True
        return False

    def give_up(self) -> None:
        """Mark request and answer as faulty, so that nothing may follow."""
        self.request = OUTGOING[self.request][FAULT]
        self.answering = ANSWER[self.answering][FAULT]

    def be_ready(self) -> bool:
        """Prepare for another exchange; return False if something of this one is left over."""
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
        found = None if _answer is None else _answer(data, limits.answer_head_bytes_max)
        if found is not None:
            return self._begun(_answer_of(found), data, found[0])
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
            self.answer, self._left = answer, None
            self.answering = ANSWER[self.answering][HEAD]
            return data[at:]
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > limits.interim_answers_max:
                raise Malformed("an upgrade nobody asked for, or too many interim answers")
            self._says_close = self._says_close or not answer.keep_alive
            return self._head(data[at:]) if len(data) > at else b""
        return self._begun(answer, data, at)

    def _begun(self, answer: AnswerHead, data: bytes, at: int) -> bytes:
        """Process a final head that ends at `at`, and return the payload of the bytes behind it."""
        limits, status = self._limits, answer.status
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
