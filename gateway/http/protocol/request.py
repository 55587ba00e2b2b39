"""Reads the head of a request: its method, target and fields, and how its body is framed.

llhttp checks the syntax; what llhttp accepts against RFC 9110 or 9112 is refused here. An ambiguous head is
refused, never repaired. Pure functions: no route, no caller, no socket.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha1
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final, Generic, NamedTuple, TypeVar

import httptools

from gateway.core.calls.routes import CHARACTER, TWO_READINGS
from gateway.core.families.header_fields import (
    BAGGAGE_FIELD,
    CONTROLLED,
    CREDENTIAL_FIELDS,
    ENDED_PREFIXES,
    OURS_PREFIX,
    READ,
    READ_AND_PASSED,
    SESSIONS,
    UNITS_FIELD,
    VARYING,
    WITHHELD_SOMEWHERE,
    is_choosing,
    is_ended,
    is_usual,
    is_withheld,
)
from gateway.core.http_limits import HttpLimits
from gateway.core.lru import LruCache, LruEntry
from gateway.core.traces import FIELD as TRACE_FIELD
from gateway.core.traces import cut_usual_line
from gateway.errors import (
    ExpectationFailed,
    FieldsTooLarge,
    MalformedRequest,
    Refusal,
    RequestTooLarge,
    TargetTooLong,
    UnknownMethod,
    UnsupportedVersion,
    UpgradeRefused,
)
from gateway.http.protocol.framing import (
    ANSWERED,
    BARE,
    BEGUN,
    BODY,
    CLOSED,
    DISCARDING,
    ENDED,
    FAULT,
    HEAD_END,
    IDLE,
    INCOMING,
    LENGTH_DIGITS_MAX,
    WHOLE,
    ChunkedBody,
    IllegalEvent,
    Malformed,
    decimal,
    has_bare_newline,
)

# Caches of parsed values, bounded in bytes.
#
# Unauthenticated clients choose many of the cached values. So an entry has a size, a new entry evicts only as
# much as it needs, and an updated entry evicts nothing. In the LRU cache, strangers cannot evict the entries
# of regular clients.

K = TypeVar("K", bound="bytes | str")
V = TypeVar("V")
U = TypeVar("U", bound=LruEntry)


class ParseCache(Generic[K, V]):
    """A cache of values by the text that they were parsed from; the oldest entry is evicted first.

    `known` is for reading; only `keep` writes to it. A key longer than `key_bytes_max` is not cached. An
    entry counts `copies` times its key, because the value contains parts of it, plus `entry_bytes` of
    overhead.
    """

    __slots__ = ("_bytes_max", "_copies", "_entry_bytes", "_key_bytes_max", "_order", "held_bytes", "known")

    def __init__(self, bytes_max: int, key_bytes_max: int, copies: int, entry_bytes: int) -> None:
        self.known: dict[K, V] = {}
        self.held_bytes = 0
        self._order: deque[K] = deque()
        self._bytes_max = bytes_max
        self._key_bytes_max = key_bytes_max
        self._copies = copies
        self._entry_bytes = entry_bytes

    def keep(self, key: K, value: V) -> None:
        """Store a value, and evict the oldest entries if there is no room."""
        size = self._size(key)
        if len(key) > self._key_bytes_max or size > self._bytes_max:
            return
        known = self.known
        if key not in known:
            self.held_bytes += size
            while self.held_bytes > self._bytes_max:
                oldest = self._order.popleft()
                self.held_bytes -= self._size(oldest)
                del known[oldest]
            self._order.append(key)
        known[key] = value

    def _size(self, key: K) -> int:
        return len(key) * self._copies + self._entry_bytes


class LruParseCache(LruCache[K, U]):
    """A `ParseCache` that evicts the least recently used entry first."""

    __slots__ = ("_copies", "_entry_bytes", "_key_bytes_max")

    def __init__(self, bytes_max: int, key_bytes_max: int, copies: int, entry_bytes: int) -> None:
        super().__init__(bytes_max)
        self._key_bytes_max = key_bytes_max
        self._copies = copies
        self._entry_bytes = entry_bytes

    def keep(self, key: K, value: U) -> None:
        """Store a value, and evict the least recently used entries if there is no room."""
        size = len(key) * self._copies + self._entry_bytes
        if len(key) <= self._key_bytes_max and size <= self.most:
            self.put(key, value, size)


# Kinds of request fields by name, as `header_fields.py` says: the kind of each spelling of a short name is
# cached, within bounds, as the sender is not authenticated yet.

NAMES_BYTES_MAX = 256 * 1024
NAME_BYTES_MAX = 64

# Roles of a field line, by its name. PASSES: forwarded unless withheld. DECIDES: routing depends on the line.
# PROVES: contains the credential. SAYS: attribution. TRACES: the trace context. VARIES: not worth caching.
# AMBIGUOUS: the request is refused. LISTED: forwarded if the API's clients send it, or its upstream takes it.
PASSES, DECIDES, PROVES, SAYS, TRACES, VARIES, AMBIGUOUS, LISTED = 1, 2, 4, 8, 16, 32, 64, 128


class FieldKind(NamedTuple):
    """The kind of a request field, by its name.

    `lower` is the name in lower case, `plain` also has hyphens for underscores, as an upstream may read it.
    `passes`: forwarded to the upstream; `read`: read here; `shadows`: a second spelling of a name that is
    read here. `chooses`: an upstream gets it only if its configuration names it. `role` combines the
    constants above.
    """

    lower: bytes
    plain: bytes
    passes: bool
    read: bool
    shadows: bool
    role: int
    chooses: bool


_names: ParseCache[bytes, FieldKind] = ParseCache(NAMES_BYTES_MAX, NAME_BYTES_MAX, 3, 384)
known_fields = _names.known


def field_kind(name: bytes) -> FieldKind:
    """Return the kind of the field with this name, and cache the result."""
    lower = name.lower()
    plain = lower.replace(b"_", b"-")
    ours = lower.startswith(OURS_PREFIX)
    ended = is_ended(lower)
    read = ours or lower in READ or lower in READ_AND_PASSED
    shadows = plain != lower and (plain in CONTROLLED or plain.startswith(ENDED_PREFIXES))
    chooses = is_choosing(plain)
    if read:
        role = _purpose(lower)
    else:
        decides = chooses or is_withheld(plain, WITHHELD_SOMEWHERE)
        role = AMBIGUOUS if shadows else DECIDES if decides else 0
    role |= VARIES if lower in VARYING else 0
    if not ended:
        role |= PASSES if is_usual(lower) else PASSES | LISTED
    kind = FieldKind(lower, plain, not ended, read, shadows, role, chooses)
    _names.keep(name, kind)
    return kind


def _purpose(lower: bytes) -> int:
    """Return what the gateway reads from a field with this lower-case name, as a constant.

    It is TRACES (trace), PROVES (credential), SAYS (attribution) or DECIDES (all other fields).
    """
    if lower == TRACE_FIELD:
        return TRACES
    if lower in CREDENTIAL_FIELDS:
        return PROVES
    if (
        (lower.startswith(OURS_PREFIX) and lower != UNITS_FIELD)
        or lower in SESSIONS
        or lower == BAGGAGE_FIELD
    ):
        return SAYS
    return DECIDES


# The values of fields by their names in lower case, in order, without the whitespace around them.
Values = Mapping[bytes, list[bytes]]

_METHODS = frozenset(
    b"GET HEAD POST PUT PATCH DELETE OPTIONS QUERY PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK "
    b"REPORT SEARCH".split()
)
_FIELD_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"(?i:https?)://[^/?#@]+(/?.*)", re.DOTALL)
_PATH = re.compile(f"(?:/{CHARACTER}*)+".encode())
_QUERY = re.compile(rb"[\x21\x24-\x7e]*")
_BAD_PATH = re.compile(TWO_READINGS.encode())
_ENCODED_SLASH = re.compile(rb"%2[fF]")
_LENGTH_SPELLINGS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_SOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_SOCKET_ACCEPTS = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONNECTION_OPTIONS = frozenset({b"", b"close", b"keep-alive", b"upgrade"})


@dataclass(slots=True)
class RequestHead:
    """The head of one accepted request.

    `fields` are all fields, each with its kind and its original line; `read` holds the values of the fields
    that are read here, by lower-case name. `length` is None if not stated, or if `cut_length` removed it
    before. `nominated` are the names that `Connection` makes hop-by-hop. `upgrades`: the request asks for a
    WebSocket.
    """

    method: bytes
    path: bytes
    query: bytes
    minor: int
    fields: list[tuple[FieldKind, bytes]]
    read: dict[bytes, list[bytes]]
    length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    expects: bool = False
    nominated: frozenset[bytes] = frozenset()
    upgrades: bool = False

    def all(self, name: bytes) -> list[bytes]:
        """Return all values of a field that the gateway reads, in order."""
        return self.read.get(name, [])


def cut_length(head: bytes) -> tuple[bytes, int]:
    """Remove the content-length field from a head; return the remaining head, and the length.

    The length is -1 if the field is missing or spelled unusually. The remaining head is the same for bodies
    of any size, so it is parsed once and cached. Its parser finds a second content-length.
    """
    for spelling in _LENGTH_SPELLINGS:
        before, found, rest = head.partition(spelling)
        if found:
            length, end, behind = rest.partition(b"\r\n")
            number = decimal(length)
            if number >= 0:
                return b"%b%b%b" % (before, end, behind), number
    return head, -1


# A head without its length; the same without the lines that differ between clients of one kind; the length or
# -1; the lines with credentials, and those with attribution, each as one text; the trace line in the usual
# form, and the trace's id; and the end of the head.
HeadCut = tuple[bytes, bytes, int, bytes, bytes, bytes, str, int]
CUT_LINES_MAX: Final = 16  # of one head; if there are more, only the length is cut

# `cut_head` in C, if compiled; it returns None for unusual heads. The Python code is the definition.
_cut: Callable[[bytes, int], HeadCut | None] | None
try:
    _heads = import_module("gateway.http.protocol._heads")
    _heads.know_credentials(tuple(CREDENTIAL_FIELDS))
    _cut = _heads.cut_head
except ImportError:
    _cut = None


def cut_head(head: bytes) -> HeadCut:
    """Split a head into the part that all requests of one client program share, and the lines that differ.

    These lines are the length, credential, attribution and trace.
    """
    end = len(head)
    head, length = cut_length(head)
    rest, trace, trace_id = cut_usual_line(head)
    lines, proving, saying, size = rest.split(b"\r\n"), b"", b"", 0
    least = len(lines) - 3 - CUT_LINES_MAX + (1 if trace else 0)
    for line in lines[1:-2]:
        name, colon, _ = line.partition(b":")
        lower = name.lower()
        if colon and lower in CREDENTIAL_FIELDS:
            proving = b"%b\r\n%b" % (proving, line) if proving else line
        elif colon and lower.startswith(OURS_PREFIX) and lower != UNITS_FIELD:
            saying = b"%b\r\n%b" % (saying, line) if saying else line
        else:
            size += 1
            lines[size] = line
    if size < least:
        return head, head, length, b"", b"", b"", "", end
    lines[size + 1 : -2] = []
    return head, b"\r\n".join(lines), length, proving, saying, trace, trace_id, end


def read_request_head(head: bytes, limits: HttpLimits) -> RequestHead:
    """Read the head of a request up to its blank line; raise `MalformedRequest` with the fault."""
    line, *fields = head[:-4].split(b"\r\n")
    if len(line) > limits.request_line_bytes_max:
        raise TargetTooLong
    if len(fields) > limits.head_fields_max:
        raise FieldsTooLarge
    method, target, minor = _request_line(line)
    _judge(head)
    path, query = _target(target)
    understood, values = read_fields(fields)
    read = RequestHead(method, path, query, minor, understood, values)
    hosts = read.all(b"host")
    if len(hosts) > 1 or (not hosts and read.minor == 1):
        raise MalformedRequest("There must be one Host field.")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise MalformedRequest("The Host field is not a host.")
    _read_framing(read)
    _read_connection(read)
    return read


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Return method, target and minor version; raise the refusal of an invalid line."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise MalformedRequest("The request line is not a method, a target and a version.")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if re.fullmatch(rb"HTTP/\d\.\d", version):
            raise UnsupportedVersion
        raise MalformedRequest("The request line does not end in a version of HTTP.")
    if method == b"CONNECT":
        raise MalformedRequest("CONNECT is not served here.")
    if method not in _METHODS:
        if re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", method):
            raise UnknownMethod
        raise MalformedRequest("The method is not a token.")
    return method, target, int(version[-1:])


def _judge(head: bytes) -> None:
    """Raise MalformedRequest unless a second parser accepts the head, too."""
    ends: list[bool] = []
    parser: Any = httptools.HttpRequestParser(SimpleNamespace(on_headers_complete=lambda: ends.append(True)))
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise MalformedRequest(f"The request is not HTTP: {error}.") from error
    if not ends:
        raise MalformedRequest("The head of the request does not end where it seems to.")


def _target(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a request target; the authority of an absolute target is ignored."""
    if target[:1] != b"/":
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise MalformedRequest("The request target is not a path.")
        target = match[1] if match[1][:1] == b"/" else b"/" + match[1]
    path, mark, query = target.partition(b"?")
    if _PATH.fullmatch(path) is None or (
        _BAD_PATH.search(path) is not None and _BAD_PATH.search(_ENCODED_SLASH.sub(b"/", path)) is not None
    ):
        raise MalformedRequest("The path holds characters or segments that could be read in two ways.")
    if _QUERY.fullmatch(query) is None:
        raise MalformedRequest("The query holds characters that must be percent-encoded.")
    return path, mark + query


def role_of(line: bytes) -> int:
    """Return the roles of one header line for the gateway, as a sum of the constants PASSES … AMBIGUOUS.

    An invalid line is AMBIGUOUS, so that the whole head is refused.
    """
    if _FIELD_LINE.fullmatch(line) is None:
        return AMBIGUOUS
    name = line.partition(b":")[0]
    kind = known_fields.get(name) or field_kind(name)
    return kind.role


def read_fields(lines: list[bytes]) -> tuple[list[tuple[FieldKind, bytes]], dict[bytes, list[bytes]]]:
    """Return all fields with their kinds, and by name the values of those that the gateway reads.

    Raise `MalformedRequest` if a name has `_` in place of `-`.
    """
    fields: list[tuple[FieldKind, bytes]] = []
    read: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        kind = known_fields.get(name) or field_kind(name)
        fields.append((kind, line))
        if kind.read:
            read.setdefault(kind.lower, []).append(value.strip(b" \t"))
        elif kind.shadows:
            plain = kind.lower.replace(b"_", b"-")
            raise MalformedRequest(f"The field {kind.lower.decode()} must be written {plain.decode()}.")
    return fields, read


def _read_framing(head: RequestHead) -> None:
    """Set how the body's length is known; raise the refusal of an invalid or doubtful length."""
    codings, lengths = head.all(b"transfer-encoding"), head.all(b"content-length")
    if codings:
        if len(codings) > 1 or codings[0].lower() != b"chunked" or lengths or head.minor == 0:
            raise MalformedRequest(
                "Transfer-Encoding must be chunked, once, in HTTP/1.1, without Content-Length."
            )
        head.chunked = True
    if lengths:
        if len(lengths) > 1 or not lengths[0].isdigit():
            raise MalformedRequest("Content-Length must be one decimal number.")
        if len(lengths[0]) > LENGTH_DIGITS_MAX:
            raise RequestTooLarge
        head.length = int(lengths[0])


def _read_connection(head: RequestHead) -> None:
    """Set what the fields `connection`, `upgrade` and `expect` ask for."""
    options = _tokens(head.all(b"connection"))
    head.nominated = options - _CONNECTION_OPTIONS
    head.keep_alive = b"close" not in options and (head.minor == 1 or b"keep-alive" in options)
    # Without the option an intermediary may have forwarded the field unread: RFC 9110, 7.8.
    head.upgrades = b"upgrade" in options and b"websocket" in _tokens(head.all(b"upgrade"))
    expectations = head.all(b"expect")
    if expectations and head.minor == 1:
        if [value.lower() for value in expectations] != [b"100-continue"]:
            raise ExpectationFailed
        head.expects = True


def _tokens(values: list[bytes]) -> frozenset[bytes]:
    """Return the members of a field's values that are lists, in lower case."""
    return frozenset(token.strip(b" \t").lower() for value in values for token in value.split(b","))


def accept_of(head: RequestHead) -> bytes:
    """Return the Sec-WebSocket-Accept for a request (RFC 6455, 4.2), or raise its refusal."""
    keys = head.all(b"sec-websocket-key")
    if not head.upgrades or head.all(b"sec-websocket-version") != [b"13"]:
        refusal = UpgradeRefused("This is a WebSocket, whose Sec-WebSocket-Version must be 13.")
        refusal.fields = (
            (b"upgrade", b"websocket"), (b"connection", b"upgrade"), (b"sec-websocket-version", b"13"),
        )  # fmt: skip
        raise refusal
    if head.method != b"GET" or head.minor != 1 or head.chunked or head.length or not head.keep_alive:
        raise MalformedRequest("A WebSocket is opened by a GET of HTTP/1.1 without a body.")
    if len(keys) != 1 or _SOCKET_KEY.fullmatch(keys[0]) is None:
        raise MalformedRequest("The Sec-WebSocket-Key must be 16 bytes in base64.")
    return accepted(keys[0])


def accepted(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455, 4.2.2)."""
    return b64encode(sha1(key + _SOCKET_ACCEPTS).digest())  # noqa: S324  # as RFC 6455 says: no secret


# The framing of a client's connection: bytes go in, heads and payloads come out.
#
# Only this code decides where a request ends. It does not know whether the client is still connected, the
# meaning of the request, or its answer; it has no socket and no clock.

_UNREAD = (IDLE, WHOLE)
_READ_ON = (BODY, DISCARDING)


class ClientSide:
    """The successive requests of one client connection. `state` is a state of the table `INCOMING`.

    `waiting` are received bytes that are not processed yet. `fresh` is True if a head has just begun to
    arrive.
    """

    __slots__ = ("_bytes_due", "_chunked", "_limits", "_scanned", "fresh", "state", "waiting")

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.waiting = b""
        self._scanned = 0
        self.fresh = False
        self._bytes_due = 0
        self._chunked: ChunkedBody | None = None
        self.state = IDLE

    @property
    def droppable(self) -> bool:
        """Whether the unread rest of the present request is small enough to read and ignore."""
        if self.state == BODY:
            return self._chunked is None and self._bytes_due <= self._limits.discarded_bytes_max
        return self.state == WHOLE

    def receive(self, data: bytes) -> bytes:
        """Process received bytes; return the decoded bytes of the body, b"" if no body is being read.

        Raise `MalformedRequest` if the body's framing is invalid.
        """
        state = self.state
        if state in _UNREAD:
            self.waiting = self.waiting + data if self.waiting else data
        elif state in _READ_ON:
            return self._payload(data)
        return b""

    def head(self) -> HeadCut | None:
        """Return the next request's head, split by `cut_head`; None while it is incomplete.

        Raises a `Refusal` if the bytes cannot become a head, and `IllegalEvent` while another request is
        read. The caller continues with `request`.
        """
        if self.state != IDLE:
            raise IllegalEvent(f"a head while a request is {self.state}")
        data = self.waiting
        cut = None if _cut is None or self._scanned else _cut(data, self._limits.head_bytes_max)
        if cut is not None:
            self.waiting = data[cut[7] :]
            return cut
        if data[:2] == b"\r\n" and not self._scanned:  # one empty line is ignored before: RFC 9112, 2.2
            data = data[2:]
        end = data.find(HEAD_END, self._scanned)
        if end < 0 or end > self._limits.head_bytes_max:
            self._check_part(data)
            return None
        self.waiting = data[end + 4 :]
        self._scanned = 0
        return cut_head(data[: end + 4])

    def request(self, length: int, chunked: bool) -> bytes:
        """Begin a request with this body length, or a `chunked` body; return the arrived part of the body.

        Raise `MalformedRequest` if the part is invalid.
        """
        data = self.waiting
        if not chunked:
            if len(data) >= length:
                self.state = INCOMING[self.state][BARE]
                if len(data) == length:  # compiled, a slice is always a copy, even of the whole
                    self.waiting = b""
                    return data
                self.waiting = data[length:]
                return data[:length]
            self._bytes_due = length
        else:
            self._chunked = ChunkedBody(self._limits, self._limits.small_chunks_max)
        self.state = INCOMING[self.state][BEGUN]
        self.waiting = b""
        return self._payload(data)

    def refuse(self) -> None:
        """Mark the present request as never complete: the bytes after it cannot be read."""
        self.state = INCOMING[self.state][FAULT]
        self._forget()

    def answered(self) -> None:
        """Mark the present request as answered: the rest of its body will be dropped."""
        self.state = INCOMING[self.state][ANSWERED]

    def close(self) -> None:
        """Stop reading: the rest of the present request is dropped, and no other request follows."""
        self.state = INCOMING[self.state][CLOSED]
        self._forget()

    def _check_part(self, data: bytes) -> None:
        """Store the beginning of a head; raise a `Refusal` if it cannot become valid."""
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
        """Return the bytes of `data` that belong to the body; keep the rest for the next request."""
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
        left = self._bytes_due - len(data)
        if left <= 0:
            if left < 0:
                self.waiting = data[left:]
                data = data[:left]
            left = 0
            self.state = INCOMING[self.state][ENDED]
        self._bytes_due = left
        return data

    def _forget(self) -> None:
        self.waiting = b""
        self._chunked = None
        self._scanned = 0
