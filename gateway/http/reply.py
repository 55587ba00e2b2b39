"""The bytes of an answer's head, and of a whole refusal."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from gateway.core.accounts.limits import limit_lines
from gateway.core.families.refusal import HELD_OFF, render
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Decision
from gateway.core.wait import Wait
from gateway.errors import InvalidApiKey, Refusal
from gateway.http.protocol.answer import LIMITED, AnswerHead
from gateway.http.routing.call_head import CallHead
from gateway.http.routing.cors import Preflight
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.server.exchange import ClientGone, Exchange

CORS_PREFIX = b"access-control-"
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


def answer_head(
    exchange: Exchange, answer: AnswerHead, decision: Decision | None, framing: bytes, keep_alive: bool
) -> bytes:
    """An upstream's head for our client: what passes of it, then ours. `framing` is a field line or empty."""
    lines = answer.lines
    if exchange.head.cors:  # which pages may call is said here alone
        lines = [line for line in lines if line[: len(CORS_PREFIX)].lower() != CORS_PREFIX]
    if not answer.dated:
        lines.append(b"date: " + _date(int(time.time())))  # RFC 9110, 6.6.1
    upstream_id = answer.request_id
    if answer.plain_request_id:
        if FAMILIES[exchange.routed.family].names_requests:
            upstream_id = upstream_id or answer.plain_request_id
        else:
            lines.append(b"request-id: " + answer.plain_request_id)
    if upstream_id:
        lines.append(b"x-upstream-request-id: " + upstream_id)
    if framing:
        lines.append(framing)
    if answer.status in HELD_OFF:
        lines.append(b"x-tollkeeper-refused-by: upstream")
    if decision is not None and answer.status not in LIMITED:  # beside its own limits ours would mislead
        told = limit_lines(decision)
        if told:
            lines.append(told)
    return _finished(exchange, lines, keep_alive)


def own_answer(exchange: Exchange, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole answer of the gateway itself."""
    exchange.status = status
    lines = [
        _STATUS_LINES.get(status) or b"HTTP/1.1 %d Refused" % status,
        b"date: " + _date(int(time.time())),
    ]
    if status != 204:  # RFC 9110, 8.6
        lines.append(b"content-length: %d" % len(body))
    lines += [b"%b: %b" % field for field in fields]
    head = _finished(exchange, lines, exchange.decide_keep_alive())
    exchange.write(head if exchange.routed.method == b"HEAD" else head + body)


def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """Send a whole answer that refuses, in the shape of the request's family; or one to a preflight."""
    if isinstance(refusal, Preflight):
        own_answer(exchange, refusal.status, list(refusal.fields), b"")
        return
    exchange.reason = refusal.reason
    fields, body = render(refusal, exchange.routed.family, exchange.request_id)
    if exchange.routed.allow:
        fields.append((b"allow", ", ".join(exchange.routed.allow).encode()))
    own_answer(exchange, refusal.status, fields, body)


async def refuse_wrong(exchange: Exchange, wrong: InvalidApiKey) -> None:
    """Refuse a wrong credential, later where its sender has sent many."""
    failures = exchange.worker.ports.failures
    peer = exchange.connection.transport.get_extra_info("peername")
    delay_s = failures.count(str(peer[0]) if isinstance(peer, tuple) else "", wrong.failure)
    if not delay_s:
        refuse(exchange, wrong)
        return
    failures.delayed += 1
    # Nothing else of its head and body is kept while it waits, and its connection ends with the answer.
    routed = exchange.routed
    exchange.connection.body.take_parts()
    routed = RoutedHead(routed.family, routed.label, method=routed.method, minor=routed.minor)
    cors = exchange.head.cors
    exchange.head, exchange.routed = CallHead(routed), routed
    exchange.head.cors = cors
    waited: Wait[None] = Wait()
    timer = asyncio.get_running_loop().call_later(delay_s, waited.set, None)
    gone = False
    try:
        await waited
    except ClientGone:
        gone = True
    timer.cancel()
    failures.delayed -= 1
    exchange.reason, exchange.broken = wrong.reason, gone
    if not gone:
        refuse(exchange, wrong)


def _finished(exchange: Exchange, lines: list[bytes], keep_alive: bool) -> bytes:
    """The head with what every answer carries."""
    routed, cors = exchange.routed, exchange.head.cors
    request_id = exchange.request_id.encode()
    lines.append(b"x-request-id: " + request_id)
    if FAMILIES[routed.family].names_requests:
        lines.append(b"request-id: " + request_id)
    if cors:
        lines.append(cors)
    if not keep_alive:
        lines.append(b"connection: close")
    elif routed.minor == 0:
        lines.append(b"connection: keep-alive")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


@lru_cache(2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
