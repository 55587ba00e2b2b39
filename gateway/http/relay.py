"""Relays an answer to the client: through the meter, at the client's speed, with its end held back.

No client gets a complete answer before it is charged: the last event of an answer, and all bytes after it,
wait in the meter for the settlement. A whole JSON document is held back up to a maximum, so that an upstream
that breaks off becomes a clean 502; a stream is relayed event by event.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from gateway.core.accounts.limits import limit_lines
from gateway.core.calls.binding import UNREAD_METERS
from gateway.core.calls.call import CallRequest, NameCheck
from gateway.core.calls.routes import Route
from gateway.core.circuit_breaker import UNFINISHED
from gateway.core.families.family import TOLD_MAX
from gateway.core.families.objects import kept_apart, session_of
from gateway.core.families.refusal import HELD_OFF, render
from gateway.core.families.registry import FAMILIES
from gateway.core.metering.meter import OPEN, Meter
from gateway.core.model import Decision
from gateway.errors import CountersUnavailable, QuotaExceeded, Refusal, UpstreamUnreachable
from gateway.http.charge import AdmittedCall, Failed
from gateway.http.forward import REFUSING, hear_refusal, note_failure
from gateway.http.identity import upload_pass
from gateway.http.protocol.answer import LIMITED, NO_BODY, AnswerHead
from gateway.http.protocol.framing import LAST_CHUNK, chunk
from gateway.http.routing.routes import UPLOAD_PASS, uploads_of
from gateway.http.server.exchange import ClientGone, Exchange
from gateway.http.upstream.pool import Link

CLIENT_GONE: Final = "client_gone"
ANSWER_CUT: Final = "answer_cut"
CORS_PREFIX: Final = b"access-control-"
# Status and reason in the journal for an answer that was read whole: client gone, client present; or cut.
_LEFT, _TOLD, _CUT = (0, CLIENT_GONE), (0, ""), (0, ANSWER_CUT)
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


async def relay(exchange: Exchange, admitted: AdmittedCall, answer: AnswerHead) -> None:
    """Relay an answer to the client through the meter that reads its usage.

    The call is charged before the answer's last bytes are sent.
    """
    call, meter, link, status = admitted.call, admitted.meter, exchange.link, answer.status
    assert meter is not None
    assert link is not None
    route = exchange.routed.route
    if answer.session and route is not None and FAMILIES[route.family].session_field:
        # The owner of the session is stored before the client gets its id.
        session = session_of(route.upstream, answer.session)
        await exchange.worker.ports.objects.keep(admitted.caller, [session])
    if answer.address and route is not None:
        await _lead_here(exchange, admitted, answer, route)
    altered = call.strip_usage and 200 <= status < 300
    outlet = Outlet(exchange, answer, admitted.limits_shown, altered, meter)
    exchange.fail = outlet.fail
    if link.complete and not answer.content_encoding and call.narrow is None:
        tail = meter.whole(link.take_payload())
    else:
        tail = await _relay_body(exchange, admitted, link, meter, outlet)
    if call.units_pointer and meter.unread:
        raise UpstreamUnreachable("The upstream's answer is no document that could say its units.")
    if status >= HTTPStatus.BAD_REQUEST:
        hear_refusal(exchange, call, answer, tail, meter.detail.retry_s)
    told = _take_ids(meter, call) if meter.told else []
    exchange.ended_upstream = exchange.worker.ports.seconds()
    if exchange.before_end is not None:
        await exchange.before_end(told)
    if told:
        # The owner of the objects is stored before the client gets their ids.
        waits = _keep(exchange, admitted, told)
        for kept in waits if not admitted.charges else ():  # a charged answer is delivered even if this fails
            await kept
    early = admitted.settles_after_reply
    if early:
        outlet.end(tail)
    # A job keeps its hold until its result exists.
    complete, came_to = _outcome(exchange, meter, status)
    charged = not admitted.due or await admitted.settle(status, complete, False, came_to)
    if not early:
        if not charged:  # an answer that may not have been charged is never completed
            raise CountersUnavailable(retry_after_s=1)
        outlet.end(tail)
    exchange.leave_upstream()


def _outcome(exchange: Exchange, meter: Meter, status: int) -> tuple[bool, Failed]:
    """Judge an answer whose bytes arrived without an error: return whether its content is complete.

    Return as well the status and reason for the journal of calls.
    """
    if not meter.ended or meter.is_whole or not 200 <= status < 300:
        return True, exchange.outlasted or (_LEFT if exchange.gone else _TOLD)
    failure = UpstreamUnreachable("The upstream's answer ended without its API's last word.")
    failure.cause = UNFINISHED
    exchange.reason = exchange.reason or ANSWER_CUT
    note_failure(exchange, failure)
    return False, exchange.outlasted or _CUT


async def _lead_here(exchange: Exchange, admitted: AdmittedCall, answer: AnswerHead, route: Route) -> None:
    """Replace the upload URL in an answer by this gateway's, and store the caller as the upload's owner."""
    uploads, asked = uploads_of(route), dict(parse_qsl(urlsplit(answer.address.decode("latin-1")).query))
    if uploads is not None and asked.get(uploads.id):
        session = session_of(route.upstream, asked[uploads.id].encode())
        await exchange.worker.ports.objects.keep(admitted.caller, [session])
        kept, proof = {name: asked[name] for name in route.queries if name in asked}, exchange.head.proof
        if not proof.token:
            kept[UPLOAD_PASS] = upload_pass(asked[uploads.id], proof.digest, exchange.worker.heads.pepper)
        address = f"{origin_of(exchange)}{exchange.routed.sent}?{urlencode(kept)}"
        answer.text = b"%b\r\n%b: %b" % (answer.text, uploads.address, address.encode())


def origin_of(exchange: Exchange) -> str:
    """Return the gateway's base URL: the configured one, else the one that this client used."""
    public = exchange.worker.limits.public_url
    if public:
        return public
    tls = exchange.connection.transport.get_extra_info("sslcontext") is not None
    return f"http{'s' if tls else ''}://{exchange.routed.host.decode('latin-1')}"


async def _relay_body(
    exchange: Exchange, admitted: AdmittedCall, link: Link, meter: Meter, outlet: Outlet
) -> bytes:
    """Relay the body as it arrives; return its last part, which is not sent yet.

    Raises the failure that cut the body. A stream that used up its hold gets an extension. If the limit has
    nothing left and the plan requires it, the stream is ended here, in valid form if possible.
    """
    worker, call = exchange.worker, admitted.call
    limits = worker.limits
    is_read = call.narrow is not None or call.units_pointer or call.meter not in UNREAD_METERS
    # An upstream refuses a stream with a document.
    passes = (call.streamed and exchange.status not in REFUSING) or not is_read
    held_max = 0 if passes else limits.answer_held_bytes_max
    counted_from = limits.answer_uncounted_bytes_max
    held = b""
    read_on: _ReadOn | None = None
    while True:
        data, complete = link.take_payload(), link.complete
        passed = _metered(exchange, admitted, meter, data)
        if meter.behind:
            passed += await _catch_up(exchange, admitted, link, meter)
        if complete:
            passed += meter.finish()
            return held + passed + (await _catch_up(exchange, admitted, link, meter) if meter.behind else b"")
        if link.failure is not None and meter.is_whole and meter.final:  # the answer is complete
            return held + passed + meter.finish()
        _check_unbroken(link, meter)
        passed = held + passed
        if len(passed) < held_max:
            held = passed
        else:
            held, held_max = b"", 0
            outlet.write(passed)
        if call.streamed and meter.phase == OPEN and not admitted.covers(meter.observed()):
            end = meter.cut()
            if not end:
                raise QuotaExceeded("What covered this answer is used up.")
            return end
        size, data, passed = len(data), b"", b""  # during a wait only the written copy is in memory
        kept = meter.kept + len(held)
        if kept > counted_from or exchange.connection.blocked:
            counted_from = -1  # from now on
            if not exchange.connection.keep_untaken(kept):  # memory is short
                meter.slim()
                held_max = 0
        if exchange.gone and exchange.before_end is None:  # else it is wanted whole
            read_on = read_on or _ReadOn()
            read_on.check(exchange, meter, size, call.streamed)
        elif exchange.connection.blocked:
            link.hold()
            await exchange.connection.writable()
            link.go_on()
        await link.arrival()


class _ReadOn:
    """The amount of an answer that was read after its client had left."""

    __slots__ = ("_read", "_tokens", "_tokens_max")

    def __init__(self) -> None:
        self._read, self._tokens, self._tokens_max = 0, -1, 0

    def check(self, exchange: Exchange, meter: Meter, size: int, streamed: bool) -> None:
        """Count `size` more bytes of an answer whose client has left.

        Raise `ClientGone` once the usage is known, or if the maximum of bytes or tokens is exceeded.
        """
        limits, before = exchange.worker.limits, self._tokens
        tokens = self._tokens = meter.observed() if streamed else 0
        if before < 0:
            self._tokens_max = tokens + limits.drain_tokens_max
        if tokens > before >= 0 or (tokens and not exchange.silent_since):
            exchange.silent_since = exchange.worker.ports.seconds()
        self._read += size
        if meter.known or self._read > limits.drain_bytes_max or tokens > self._tokens_max:
            raise ClientGone


def _check_unbroken(link: Link, meter: Meter) -> None:
    if link.failure is not None:
        raise link.failure
    if meter.surplus:
        meter.finish()  # the answer and its report of usage are complete
        raise UpstreamUnreachable("The upstream's answer continues after its end.")


async def _catch_up(exchange: Exchange, admitted: AdmittedCall, link: Link, meter: Meter) -> bytes:
    """Meter a large part of an answer in steps, so that other calls can run between; return its output."""
    passed: list[bytes] = []
    while meter.behind:
        await link.next_turn()
        checks = admitted.call.checks
        if checks is not None and checks.asked:
            await _check_names(exchange, admitted, checks)
        passed.append(_metered(exchange, admitted, meter, b""))
    return b"".join(passed)


async def _check_names(exchange: Exchange, admitted: AdmittedCall, checks: NameCheck) -> None:
    """Find out which of the model names that a list contains belong to the caller's organization.

    `checks` has the names to check, and gets the result.
    """
    names, own = dict.fromkeys(checks.asked), set[str]()
    checks.asked = []
    for name in names:
        if await exchange.worker.ports.objects.owned(admitted.caller, (name,)):
            own.add(name)
    checks.own = frozenset(own)


def _metered(exchange: Exchange, admitted: AdmittedCall, meter: Meter, data: bytes) -> bytes:
    """Pass data of an answer through the meter and return the output.

    The caller becomes the owner of objects that the data name.
    """
    passed = meter.feed(data) if data or meter.behind else b""
    if meter.told and exchange.before_end is None and (told := _take_ids(meter, admitted.call)):
        _keep(exchange, admitted, told)
    return passed


def _keep(exchange: Exchange, admitted: AdmittedCall, told: list[str]) -> list[Awaitable[object]]:
    """Store the caller as the owner of the objects `told`; return the pending requests to Redis."""
    objects = exchange.worker.ports.objects
    return [objects.keep(admitted.caller, ids, how) for how, ids in kept_apart(admitted.call, told)]


def _take_ids(meter: Meter, call: CallRequest) -> list[str]:
    """Return the ids of objects that an answer names for the first time, if its request did not name them."""
    told = [one for one in dict.fromkeys(meter.told) if one not in call.brought]
    meter.told.clear()
    if told and len(call.brought) < TOLD_MAX:  # many events name the same
        call.brought |= frozenset(told)
    return told


# The bytes for the client: an answer's head and body, framed as upstream and client allow.
class Outlet:
    """Writes one answer to the client, with the head and the first bytes of the body in one write.

    A WebSocket gets the body alone, without frames of HTTP.
    """

    __slots__ = ("_bare", "_chunked", "_exchange", "_head", "_meter", "_of_turn")

    def __init__(
        self,
        exchange: Exchange,
        answer: AnswerHead,
        decision: Decision | None,
        altered: bool,
        meter: Meter,
    ) -> None:
        self._meter = meter
        routed = exchange.routed
        length = None if altered else answer.length
        self._exchange = exchange
        self._chunked = False
        socket = exchange.connection.socket
        self._of_turn = socket is not None
        self._bare = routed.method == b"HEAD" or answer.status in NO_BODY
        keep_alive = exchange.decide_keep_alive()
        if length is not None:
            framing = b"\r\ncontent-length: %d" % length if answer.status != 204 else b""
        elif self._bare:
            framing = b""
        elif routed.minor == 1:
            self._chunked = socket is None
            framing = b"\r\ntransfer-encoding: chunked"
        else:
            framing = b""
            exchange.until_close = True
            exchange.keep_alive = keep_alive = False
        self._head = _answer_head(exchange, answer, decision, framing, keep_alive)
        if socket is not None:
            socket.begin_answer(answer.status, answer.content_type, self._head)

    def write(self, data: bytes) -> None:
        """Send bytes of the body; the first call sends the head, too."""
        self._send(chunk(data) if data and self._chunked else data, False)

    def end(self, data: bytes) -> None:
        """Send the last bytes of the body, and mark the end of the body."""
        if self._chunked:
            data = chunk(data) + LAST_CHUNK if data else LAST_CHUNK
        self._send(data, True)

    def fail(self, refusal: Refusal) -> bool:
        """End a begun answer with an error event; return False if the answer's format has no such event."""
        exchange = self._exchange
        if exchange.gone or self._bare or not (self._chunked or exchange.until_close or self._of_turn):
            return False
        _, body = render(refusal, exchange.routed.family, exchange.request_id)
        said = self._meter.fail(body)
        if said:
            self.end(said)
        return bool(said)

    def _send(self, data: bytes, last: bool) -> None:
        if self._bare:
            data = b""
        exchange = self._exchange
        if self._of_turn:
            exchange.pass_on(data, last)
        elif not exchange.opened:
            exchange.write(self._head + data)
        elif data:
            exchange.write(data)


def _answer_head(
    exchange: Exchange, answer: AnswerHead, decision: Decision | None, framing: bytes, keep_alive: bool
) -> bytes:
    """Return the head for the client: the forwarded fields, then those of the gateway.

    `framing` is the field about the body's length or chunks, or empty.
    """
    text, status, family = answer.text, answer.status, FAMILIES[exchange.routed.family]
    date = ids = shown = told = budget = b""
    if exchange.head.cors:  # only the gateway decides which web pages may call
        text = b"\r\n".join(
            [line for line in answer.lines if line[: len(CORS_PREFIX)].lower() != CORS_PREFIX]
        )
    if not answer.dated:
        date = b"\r\ndate: %b" % _date(int(time.time()))  # RFC 9110, 6.6.1
    upstream_id, plain_id = answer.request_id, answer.plain_request_id
    if plain_id and family.names_requests:
        upstream_id = upstream_id or plain_id
    elif plain_id:
        ids = b"\r\nrequest-id: %b" % plain_id
    if upstream_id:
        ids = b"%b\r\nx-upstream-request-id: %b" % (ids, upstream_id)
    if exchange.worker.limits.show_upstream:
        shown = b"\r\nx-tollkeeper-upstream: %b" % exchange.upstream_name.encode()
    if status in HELD_OFF:
        shown = b"%b\r\nx-tollkeeper-refused-by: upstream" % shown
    if decision is not None and status not in LIMITED:  # next to the upstream's, our limits would mislead
        told = limit_lines(decision)
        if told:
            told = b"\r\n%b" % told
        if family.budget_fields is not None and decision.budget is not None:
            fields = family.budget_fields(decision.budget, None)
            budget = b"".join([b"\r\n%b: %b" % field for field in fields])
    ending = _ending(exchange, keep_alive)
    return b"%b%b%b%b%b%b%b%b" % (text, date, ids, framing, shown, told, budget, ending)


def own_answer(exchange: Exchange, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole answer that the gateway made."""
    exchange.status = status
    lines = [
        _STATUS_LINES.get(status) or b"HTTP/1.1 %d Refused" % status,
        b"date: " + _date(int(time.time())),
    ]
    if status not in {204, 304}:  # RFC 9110, 8.6
        lines.append(b"content-length: %d" % len(body))
    lines += [b"%b: %b" % field for field in fields]
    head = b"\r\n".join(lines) + _ending(exchange, exchange.decide_keep_alive())
    socket = exchange.connection.socket
    if socket is None:
        exchange.write(head if exchange.routed.method == b"HEAD" else head + body)
    else:
        socket.begin_answer(status, b"", head)
        exchange.pass_on(body, True)


def _ending(exchange: Exchange, keep_alive: bool) -> bytes:
    """Return the last header fields of every answer, and the blank line."""
    routed, head = exchange.routed, exchange.head
    request_id = exchange.request_id.encode()
    named = cors = waited = last = b""
    if FAMILIES[routed.family].names_requests:
        named = b"\r\nrequest-id: %b" % request_id
    if head.cors:
        cors = b"\r\n%b" % head.cors
    if exchange.waited_ms:
        waited = b"\r\nx-tollkeeper-waited-ms: %d" % exchange.waited_ms
    if not keep_alive:
        last = b"\r\nconnection: close"
    elif routed.minor == 0:
        last = b"\r\nconnection: keep-alive"
    return b"\r\nx-request-id: %b%b%b%b%b\r\n\r\n" % (request_id, named, cors, waited, last)


@lru_cache(2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
