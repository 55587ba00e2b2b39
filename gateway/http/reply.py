"""The bytes of an answer's head, and of a whole refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from gateway.core.accounts.limits import limit_lines
from gateway.core.accounts.refusals import RefusedCall
from gateway.core.families.refusal import HELD_OFF, render
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Caller, Decision
from gateway.core.wait import Wait
from gateway.errors import InternalError, InvalidApiKey, Refusal
from gateway.http.ports import Log
from gateway.http.protocol.answer import LIMITED, AnswerHead
from gateway.http.routing.head import CallHead, Preflight, RoutedHead
from gateway.http.routing.routes import USAGE_PATH
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


# Errors of our own: of what type and where, never what they say, which may quote what was read.
#
# Whoever finds a way to one may have it as often as it likes, so lines are few and say how many are missing.


LINES_MAX = 10  # of `request_failed` in PERIOD_S
PERIOD_S = 60.0
_OURS = "gateway."


class Fault(Exception):
    """An error nobody expects. Keeps nothing of it but its type and the last line of ours it came through."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)
        self.place = _place(error)


class FaultLog:
    """Log faults, so many in a period; the next line after it counts those left out."""

    __slots__ = ("_began", "_left_out", "_lines", "_log", "_seconds")

    def __init__(self, log: Log, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._began = seconds()
        self._lines = self._left_out = 0

    def note(self, request_id: str, error: BaseException) -> None:
        """Write a line, or count one that is left out."""
        now = self._seconds()
        if now - self._began >= PERIOD_S:
            self._began, self._lines = now, 0
        if self._lines >= LINES_MAX:
            self._left_out += 1
            return
        self._lines += 1
        fault = error if isinstance(error, Fault) else Fault(error)
        left_out, self._left_out = self._left_out, 0
        self._log(
            "request_failed",
            request_id=request_id,
            error=str(fault),
            place=fault.place,
            left_out=left_out,
            level="error",
        )


def _place(error: BaseException) -> str:
    """Module and line of the innermost frame of ours, else of the innermost; empty where there is none."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.startswith(_OURS) or not place.startswith(_OURS):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


# What the journal is told of a call that was refused: facts on their way, which nothing waits for.


def note_refused(exchange: Exchange, caller: Caller, failure: BaseException) -> None:
    """Count a call of somebody known that was never admitted, and tell of it.

    One that was admitted tells of itself by its settlement.
    """
    charge, head, routed, call = exchange.charge, exchange.head, exchange.routed, exchange.call
    if (charge is not None and charge.charges) or routed.label == USAGE_PATH:
        return
    ports = exchange.worker.ports
    refusal = failure if isinstance(failure, Refusal) else InternalError()
    service = ports.directory.service(routed.service_key)
    ports.refusals.note(
        RefusedCall(
            exchange.request_id,
            ports.refusals.now_ms(),
            caller.organization_id,
            caller.tenant_id,
            caller.key_id,
            0 if service is None else service.id,
            caller.acts_for(head.attribution.user, "" if call is None else call.user),
            head.said.columns,
            head.attribution.session,
            routed.label,
            "" if call is None else call.model,
            call is not None and call.streamed,
            refusal.status,
            refusal.reason,
            int((ports.seconds() - exchange.started) * 1000),
        )
    )
