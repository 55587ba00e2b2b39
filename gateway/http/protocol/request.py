"""One request head, checked on its bytes alone: what it asks for and how its body is framed.

llhttp checks the syntax; what llhttp lets pass and RFC 9110 or 9112 does not is refused here.
Ambiguous means refused, never repaired. Pure functions: no route, no caller, no socket.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httptools

from gateway.core.calls.paths import CHARACTER, TWO_READINGS
from gateway.core.http_limits import HttpLimits
from gateway.errors import InvalidRequest, RequestTooLarge
from gateway.http.protocol.fields import AMBIGUOUS, FieldKind, field_kind, known_fields
from gateway.http.protocol.framing import LENGTH_DIGITS_MAX, decimal

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
_CONNECTION_OPTIONS = frozenset({b"", b"close", b"keep-alive", b"upgrade"})


class MalformedRequest(InvalidRequest):
    """The request is not HTTP/1.1 as this gateway accepts it."""


class FieldsTooLarge(MalformedRequest):
    """The header fields are larger or more than this gateway accepts."""

    status = 431


class TargetTooLong(MalformedRequest):
    """The request line is longer than this gateway accepts."""

    status = 414


class UnknownMethod(MalformedRequest):
    """This gateway does not know this method."""

    status = 501


class UnsupportedVersion(MalformedRequest):
    """Only HTTP/1.0 and HTTP/1.1 are spoken here."""

    status = 505


class ExpectationFailed(MalformedRequest):
    """The only expectation this gateway can meet is 100-continue."""

    status = 417


class RequestTimeout(MalformedRequest):
    """The request did not arrive in time."""

    status = 408


@dataclass(slots=True)
class RequestHead:
    """One accepted head.

    `fields` are all fields, each with what it is and its line as it came; `read` holds the
    values of those that are read here, by their names in lower case. `length` is None where
    none is stated (or where it was cut off before: `cut_length`). `nominated` are the names
    that `Connection` makes hop-by-hop.
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

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a name that is read here, in order."""
        return self.read.get(name, [])


def cut_length(head: bytes) -> tuple[bytes, int]:
    """Take a plainly spelled content-length out of a head: what is left, and the length or -1.

    What is left is equal for equal clients whatever the size of the body, so it can be read
    once and remembered. A second length in what is left shows up as `RequestHead.length`.
    """
    for spelling in _LENGTH_SPELLINGS:
        before, found, rest = head.partition(spelling)
        if found:
            length, end, behind = rest.partition(b"\r\n")
            number = decimal(length)
            if number >= 0:
                return b"%b%b%b" % (before, end, behind), number
    return head, -1


def read_request_head(head: bytes, limits: HttpLimits) -> RequestHead:
    """Read a head that ends in its blank line; `MalformedRequest` says what is wrong with it."""
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
    _check_host(read)
    _read_framing(read)
    _read_connection(read)
    return read


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
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
    """Path and query of an origin-form target; the authority of an absolute one chooses nothing."""
    if target[:1] != b"/":
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise MalformedRequest("The request target is not a path.")
        target = match[1] if match[1][:1] == b"/" else b"/" + match[1]
    path, mark, query = target.partition(b"?")
    if _PATH.fullmatch(path) is None or (_BAD_PATH.search(path) is not None and not _has_slashes_alone(path)):
        raise MalformedRequest("The path holds characters or segments that could be read in two ways.")
    if _QUERY.fullmatch(query) is None:
        raise MalformedRequest("The query holds characters that must be percent-encoded.")
    return path, mark + query


def _has_slashes_alone(path: bytes) -> bool:
    """Whether all that could be read in two ways is an encoded slash: which routes it leads to says more."""
    return _BAD_PATH.search(_ENCODED_SLASH.sub(b"/", path)) is None


def role_of(line: bytes) -> int:
    """What one field line does to its request, of the constants in `fields.py`.

    A line is AMBIGUOUS that is none for itself: what it refuses is said of the whole head.
    """
    if _FIELD_LINE.fullmatch(line) is None:
        return AMBIGUOUS
    name = line.partition(b":")[0]
    kind = known_fields.get(name) or field_kind(name)
    return kind.role


def read_fields(lines: list[bytes]) -> tuple[list[tuple[FieldKind, bytes]], dict[bytes, list[bytes]]]:
    """Every field with what it is, and the values of those that are read here; or `MalformedRequest`."""
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


def _check_host(head: RequestHead) -> None:
    hosts = head.all(b"host")
    if len(hosts) > 1 or (not hosts and head.minor == 1):
        raise MalformedRequest("There must be one Host field.")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise MalformedRequest("The Host field is not a host.")


def _read_framing(head: RequestHead) -> None:
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
    tokens = frozenset(
        token.strip(b" \t").lower() for value in head.all(b"connection") for token in value.split(b",")
    )
    head.nominated = tokens - _CONNECTION_OPTIONS
    head.keep_alive = b"close" not in tokens and (head.minor == 1 or b"keep-alive" in tokens)
    for value in head.all(b"upgrade"):
        if b"websocket" in value.lower():
            raise MalformedRequest("WebSocket connections are not served here.")
    expectations = head.all(b"expect")
    if expectations and head.minor == 1:
        if [value.lower() for value in expectations] != [b"100-continue"]:
            raise ExpectationFailed
        head.expects = True
