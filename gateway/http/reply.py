"""The bytes of an answer's head, and of a whole refusal."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from gateway.core.model import Family
from gateway.core.refusal import render
from gateway.errors import Refusal
from gateway.http.answer import AnswerHead
from gateway.http.exchange import Exchange

_PHRASES = {status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus}
Field = tuple[bytes, bytes]


def answer_head(exchange: Exchange, answer: AnswerHead, limits: list[Field], framing: bytes) -> bytes:
    """An upstream's head for our client: what passes of it, then ours. `framing` is a field line or empty."""
    lines = [answer.status_line, *answer.lines]
    if exchange.plan.family is Family.ANTHROPIC:
        upstream_id = answer.request_id or answer.plain_request_id
    else:
        upstream_id = answer.request_id
        if answer.plain_request_id:
            lines.append(b"request-id: " + answer.plain_request_id)
    if upstream_id:
        lines.append(b"x-upstream-request-id: " + upstream_id)
    if framing:
        lines.append(framing)
    return _finished(exchange, lines, limits)


def own_answer(exchange: Exchange, status: int, fields: list[Field], body: bytes) -> None:
    """Send a whole answer of the gateway itself."""
    exchange.status = status
    exchange.decide_keep_alive()
    lines = [
        _PHRASES.get(status) or b"HTTP/1.1 %d Refused" % status,
        b"date: " + _date(int(time.time())),
        b"content-length: %d" % len(body),
    ]
    head = _finished(exchange, lines, fields)
    exchange.opened = True
    exchange.write(head if exchange.plan.method == b"HEAD" else head + body)


def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """Send a whole answer that refuses, in the shape of the request's family."""
    exchange.reason = refusal.reason
    rendered = render(refusal, exchange.plan.family, exchange.request_id)
    fields = rendered.headers
    if exchange.plan.allow:
        fields.append((b"allow", ", ".join(exchange.plan.allow).encode()))
    own_answer(exchange, rendered.status, fields, rendered.body)


@lru_cache(2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _finished(exchange: Exchange, lines: list[bytes], fields: list[Field]) -> bytes:
    for field in fields:
        lines.append(b"%b: %b" % field)
    plan = exchange.plan
    request_id = exchange.request_id.encode()
    lines.append(b"x-request-id: " + request_id)
    if plan.family is Family.ANTHROPIC:
        lines.append(b"request-id: " + request_id)
    if not exchange.keep_alive:
        lines.append(b"connection: close")
    elif plan.minor == 0:
        lines.append(b"connection: keep-alive")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)
