"""One answer's head as its upstream sent it: judged, framed, and stripped of what ends here.

A hostile upstream is expected: what cannot be read in one way only is `Malformed`, and its
connection is dropped. Pure functions on bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import httptools

from gateway.http.framing import Malformed
from gateway.http.headers import Kind, kind_of

STATUS_LINES_MAX = 256
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_LENGTH_DIGITS_MAX = 15
_status_lines: dict[bytes, tuple[int, int, bytes]] = {}


@dataclass(slots=True)
class AnswerHead:
    """One final or interim answer head.

    `status_line` is ours, for HTTP/1.1. `lines` are the fields that pass. `length` is None
    where none is stated; with neither `length` nor `chunked` the body ends with the connection.
    """

    status: int
    status_line: bytes
    lines: list[bytes]
    length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    content_type: bytes = b""
    content_encoding: bytes = b""
    request_id: bytes = b""
    plain_request_id: bytes = b""
    usage_amount: bytes = b""
    nominated: frozenset[bytes] = field(default=frozenset())


def read_answer_head(head: bytes) -> AnswerHead:
    """Read a head that ends in its blank line; `Malformed` says what is wrong with it."""
    _judge(head)
    lines = head[:-4].split(b"\r\n")
    minor, status, status_line = _status(lines[0])
    kept: list[bytes] = []
    answer = AnswerHead(status, status_line, kept)
    if minor == 0:
        answer.keep_alive = False
    del lines[0]
    for line in lines:
        kind = kind_of(line[: line.find(b":")])
        if kind is Kind.PASS:
            kept.append(line)
        elif kind is not Kind.DROP:
            _note(answer, kind, line, minor)
    if answer.nominated:
        answer.lines = [line for line in kept if line[: line.find(b":")].lower() not in answer.nominated]
    return answer


class _Silent:
    """A protocol without callbacks: llhttp only judges."""


_SILENT = _Silent()


def _judge(head: bytes) -> None:
    parser: Any = httptools.HttpResponseParser(_SILENT)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise Malformed(str(error)) from error


def _status(line: bytes) -> tuple[int, int, bytes]:
    """Minor version, status and our status line; lines seen are remembered, within bounds."""
    known = _status_lines.get(line)
    if known is None:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise Malformed("the status line is not one of HTTP/1.1")
        known = (int(match[1]), int(match[2]), b"HTTP/1.1 %b %b" % (match[2], match[3] or b""))
        if len(_status_lines) < STATUS_LINES_MAX:
            _status_lines[line] = known
    return known


def _note(answer: AnswerHead, kind: Kind, line: bytes, minor: int) -> None:
    """Take in a field that means something here."""
    value = line[line.find(b":") + 1 :].strip(b" \t")
    if kind is Kind.LENGTH:
        if answer.length is not None or not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
            raise Malformed("the content-length is not one decimal number")
        answer.length = int(value)
    elif kind is Kind.CONTENT_TYPE:
        answer.content_type = value
        answer.lines.append(line)
    elif kind is Kind.CONTENT_ENCODING:
        answer.content_encoding = value
        answer.lines.append(line)
    elif kind is Kind.REQUEST_ID:
        answer.request_id = value
    elif kind is Kind.PLAIN_REQUEST_ID:
        answer.plain_request_id = value
    elif kind is Kind.USAGE_AMOUNT:
        answer.usage_amount = value
        answer.lines.append(line)
    elif kind is Kind.CODING:
        if answer.chunked or value.lower() != b"chunked" or minor == 0:
            raise Malformed("the transfer-encoding is not chunked, once, in HTTP/1.1")
        answer.chunked = True
    else:
        _connection(answer, value, minor)


def _connection(answer: AnswerHead, value: bytes, minor: int) -> None:
    tokens = {token.strip(b" \t").lower() for token in value.split(b",")}
    if b"close" in tokens:
        answer.keep_alive = False
    elif minor == 0 and b"keep-alive" in tokens:
        answer.keep_alive = True
    answer.nominated |= tokens - {b"", b"close", b"keep-alive"}
