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
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from gateway.core.accounts.limits import Header, limit_headers, limit_lines
from gateway.core.calls.binding import UNREAD_METERS
from gateway.core.calls.call import NO_SIZES, NameCheck
from gateway.core.calls.routes import Route
from gateway.core.circuit_breaker import UNFINISHED
from gateway.core.families.family import TOLD_MAX
from gateway.core.families.objects import continuation_of, kept_apart, session_of
from gateway.core.families.refusal import HELD_OFF, render
from gateway.core.families.registry import FAMILIES, SHAPES
from gateway.core.metering.meter import OPEN, Meter
from gateway.core.model import Admitted
from gateway.errors import CountersUnavailable, QuotaExceeded, Refusal, UpstreamUnreachable
from gateway.http.admitted_call import AdmittedCall, Failed
from gateway.http.forward import REFUSING, hear_refusal, note_failure
from gateway.http.identity import upload_pass
from gateway.http.protocol.answer import LIMITED, NO_BODY, AnswerHead
from gateway.http.protocol.framing import LAST_CHUNK, chunk
from gateway.http.routing.head import CallHead
from gateway.http.routing.routes import UPLOAD_PASS, uploads_of
from gateway.http.server.exchange import Drain, Exchange
from gateway.http.upstream.pool import Link

CLIENT_GONE: Final = "client_gone"
ANSWER_CUT: Final = "answer_cut"
CORS_PREFIX: Final = b"access-control-"
# Status and reason in the journal for an answer that was read whole: client gone, client present; or cut.
_LEFT, _TOLD, _CUT = (0, CLIENT_GONE), (0, ""), (0, ANSWER_CUT)
NAMES_REMEMBERED_MAX: Final = 1_024  # of models and budgets, as answers show them
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


async def relay(exchange: Exchange, admitted: AdmittedCall, answer: AnswerHead) -> None:
    """Relay an answer to the client through the meter that reads its usage.

    The call is charged before the answer's last bytes are sent.
    """
    call, meter, attempt, status = admitted.call, admitted.meter, admitted.attempt, answer.status
    link, ports, route = attempt.link, admitted.worker.ports, admitted.head.routed.route
    assert meter is not None
    assert link is not None
    exchange.status = status
    if answer.session and route is not None and FAMILIES[route.family].session_field:
        # The owner of the session is stored before the client gets its id.
        session = session_of(route.upstream, answer.session)
        await ports.objects.keep(admitted.caller, [session])
    if answer.address and route is not None:
        await _rewrite_upload_url(admitted, answer, route, exchange.origin)
    outlet = AnswerWriter(exchange, admitted, answer, call.alters_answer and 200 <= status < 300, meter)
    exchange.fail = outlet.fail
    if link.complete and not answer.content_encoding and call.answer_filter.narrow is None:
        tail = meter.whole(link.take_payload())
    else:
        tail = await _relay_body(exchange, admitted, link, meter, outlet)
    if call.units_pointer and meter.unread:
        raise UpstreamUnreachable("The upstream's answer is no document that could say its units.")
    if status >= 400:
        hear_refusal(admitted, answer, tail, meter.detail.retry_s)
    told = _take_ids(meter) if meter.told else []
    attempt.ended = ports.seconds()
    if exchange.before_end is not None:
        await exchange.before_end(told)
    if told or meter.own_id or meter.continues or call.objects.sizes:
        # The owner of the objects is stored before the client gets their ids.
        waits = store_sizes(admitted, meter, told) + _store_owners(admitted, told)
        for kept in waits if not admitted.charges else ():  # a charged answer is delivered even if this fails
            await kept
    early = route is not None and route.settle == "after_reply"  # its whole answer is sent before the charge
    if early:
        outlet.end(tail)
    # A job keeps its hold until its result exists.
    complete, came_to = _outcome(admitted, meter, status, exchange.gone, exchange.drain)
    exchange.reason = exchange.reason or ("" if complete else ANSWER_CUT)
    charged = not admitted.due or await admitted.settle(status, complete, False, came_to)
    if not early:
        if not charged:  # an answer that may not have been charged is never completed
            raise CountersUnavailable(retry_after_s=1)
        outlet.end(tail)
    attempt.leave(admitted.caller)


def _outcome(
    admitted: AdmittedCall, meter: Meter, status: int, gone: bool, drain: Drain | None
) -> tuple[bool, Failed]:
    """Judge an answer whose bytes arrived without an error: return whether its content is complete.

    Return as well the status and reason for the journal of calls, by whether the client is `gone`, or was
    answered before the `drain`.
    """
    answered = None if drain is None else drain.answered
    if not meter.ended or meter.is_whole or not 200 <= status < 300:
        return True, answered or (_LEFT if gone else _TOLD)
    failure = UpstreamUnreachable("The upstream's answer ended without its API's last word.")
    failure.cause = UNFINISHED
    note_failure(admitted.worker.ports, admitted.request_id, admitted.attempt.name, failure)
    return False, answered or _CUT


async def _rewrite_upload_url(admitted: AdmittedCall, answer: AnswerHead, route: Route, origin: str) -> None:
    """Replace the upload URL in an answer by one of this gateway, at `origin`; store the upload's owner."""
    uploads, asked = uploads_of(route), dict(parse_qsl(urlsplit(answer.address.decode("latin-1")).query))
    if uploads is not None and asked.get(uploads.id):
        session = session_of(route.upstream, asked[uploads.id].encode())
        await admitted.worker.ports.objects.keep(admitted.caller, [session])
        kept, proof = {name: asked[name] for name in route.queries if name in asked}, admitted.head.proof
        if not proof.token:
            kept[UPLOAD_PASS] = upload_pass(asked[uploads.id], proof.digest, admitted.worker.heads.pepper)
        address = f"{origin}{admitted.head.routed.sent}?{urlencode(kept)}"
        answer.text = b"%b\r\n%b: %b" % (answer.text, uploads.address, address.encode())


async def _relay_body(
    exchange: Exchange, admitted: AdmittedCall, link: Link, meter: Meter, outlet: AnswerWriter
) -> bytes:
    """Relay the body as it arrives; return its last part, which is not sent yet.

    Raises the failure that cut the body. A stream that used up its hold gets an extension. If the limit has
    nothing left and the plan requires it, the stream is ended here, in valid form if possible.
    """
    worker, connection, call = exchange.worker, exchange.connection, admitted.call
    limits, is_job = worker.limits, exchange.before_end is not None  # its answer is wanted whole
    is_read = call.answer_filter.narrow is not None or call.units_pointer or call.meter not in UNREAD_METERS
    # An upstream refuses a stream with a document.
    passes = (call.spec.streamed and admitted.attempt.status not in REFUSING) or not is_read
    held_max = 0 if passes else limits.answer_held_bytes_max
    counted_from = limits.answer_uncounted_bytes_max
    held = b""
    while True:
        data, complete = link.take_payload(), link.complete
        passed = _metered(admitted, meter, data, not is_job)
        if meter.behind:
            passed += await _catch_up(admitted, link, meter, not is_job)
        if complete:
            passed += meter.finish()
            return (
                held + passed + (await _catch_up(admitted, link, meter, not is_job) if meter.behind else b"")
            )
        if link.failure is not None and meter.is_whole and meter.final:  # the answer is complete
            return held + passed + meter.finish()
        _check_unbroken(link, meter)
        passed = held + passed
        if len(passed) < held_max:
            held = passed
        else:
            held, held_max = b"", 0
            outlet.write(passed)
        if call.spec.streamed and meter.phase == OPEN and not admitted.keep_covered(meter.observed()):
            end = meter.cut()
            if not end:
                raise QuotaExceeded("What covered this answer is used up.")
            return end
        size, data, passed = len(data), b"", b""  # during a wait only the written copy is in memory
        kept = meter.kept + len(held)
        if kept > counted_from or connection.blocked:
            counted_from = -1  # from now on
            if not connection.keep_untaken(kept):  # memory is short
                meter.slim()
                held_max = 0
        if exchange.drain is not None and not is_job:
            exchange.drain.check(worker, meter, size, call.spec.streamed)
        elif connection.blocked:
            link.hold()
            await connection.writable()
            link.go_on()
        await link.arrival()


def _check_unbroken(link: Link, meter: Meter) -> None:
    if link.failure is not None:
        raise link.failure
    if meter.surplus:
        meter.finish()  # the answer and its report of usage are complete
        raise UpstreamUnreachable("The upstream's answer continues after its end.")


async def _catch_up(admitted: AdmittedCall, link: Link, meter: Meter, keeps: bool) -> bytes:
    """Meter a large part of an answer in steps, so that other calls can run between; return its output."""
    passed: list[bytes] = []
    while meter.behind:
        await link.next_turn()
        checks = admitted.call.answer_filter.checks
        if checks is not None and checks.asked:
            await _check_names(admitted, checks)
        passed.append(_metered(admitted, meter, b"", keeps))
    return b"".join(passed)


async def _check_names(admitted: AdmittedCall, checks: NameCheck) -> None:
    """Find out which of the model names that a list contains belong to the caller's organization.

    `checks` has the names to check, and gets the result.
    """
    names, own = dict.fromkeys(checks.asked), set[str]()
    checks.asked = []
    for name in names:
        if await admitted.worker.ports.objects.owned(admitted.caller, (name,)):
            own.add(name)
    checks.own = frozenset(own)


def _metered(admitted: AdmittedCall, meter: Meter, data: bytes, keeps: bool) -> bytes:
    """Pass data of an answer through the meter and return the output.

    If it `keeps`, the caller becomes the owner of objects that the data name.
    """
    passed = meter.feed(data) if data or meter.behind else b""
    if meter.told and keeps and (told := _take_ids(meter)):  # those that the call named are stored at its end
        _store_owners(admitted, [one for one in told if one not in admitted.call.objects.named])
    return passed


def store_sizes(admitted: AdmittedCall, meter: Meter, others: list[str]) -> list[Awaitable[object]]:
    """Store the tokens of an answer's text with the ids by which a later call may name it; return the requests to Redis.

    These are the answer's own id, its token, and earlier objects that the answer goes on with, such as a conversation.
    They are taken out of `others`.
    """
    call, kind, usage = admitted.call, SHAPES.get(admitted.call.meter), meter.usage()
    if kind is None:  # answers that were made meanwhile have not read what this call put into objects
        keep, added = admitted.worker.ports.objects.keep, call.objects.kept
        sizes = call.objects.sizes.items()
        return [
            keep(admitted.caller, [id_], tokens=known[1], added=added, found={id_: known})
            for id_, known in sizes
        ]
    # The text of a job is known when that is charged.
    if call.spec.background or not (200 <= meter.status < 300 and usage.total):
        return []
    ids = [meter.own_id] if meter.own_id and kind.continued else []
    if ids:
        ids += [id_ for id_ in call.objects.named if id_ in meter.known_ids and id_ not in ids]
    others[:] = [id_ for id_ in others if id_ not in ids]
    ids += [continuation_of(meter.continues)] if meter.continues else []
    kept, written = max(call.objects.kept, 0), usage.output - usage.reasoning
    brought = min(usage.input, max(0, call.input_ceiling - kept) if call.input_ceiling else usage.input)
    # Where `check_objects` noted no sizes, the provider may have left text out.
    read = usage.input if call.objects.sizes else max(usage.input, kept + brought)
    return _store_owners(admitted, ids, read + written, brought + written)


def _store_owners(
    admitted: AdmittedCall, told: list[str], tokens: int = 0, added: int = 0
) -> list[Awaitable[object]]:
    """Store the caller as the owner of the objects `told`; return the pending requests to Redis.

    They stand for a text of `tokens`; this call has `added` at most so many. An object that a free call makes has the
    text that the call put there.
    """
    call, keep = admitted.call, admitted.worker.ports.objects.keep
    tokens = tokens if call.meter in SHAPES or call.objects.sizes else call.objects.kept
    sizes = call.objects.sizes if added else NO_SIZES
    return [keep(admitted.caller, ids, how, tokens, added, sizes) for how, ids in kept_apart(call, told)]


def _take_ids(meter: Meter) -> list[str]:
    """Return the ids of objects that an answer names for the first time, if its request did not name them."""
    told = [one for one in dict.fromkeys(meter.told) if one not in meter.known_ids]
    meter.told.clear()
    meter.own_id = meter.own_id or (told[0] if told else "")
    if told and len(meter.known_ids) < TOLD_MAX:  # many events name the same
        meter.known_ids |= frozenset(told)
    return told


# The bytes for the client: an answer's head and body, framed as upstream and client allow.
class AnswerWriter:
    """Writes one answer to the client, with the head and the first bytes of the body in one write.

    A WebSocket gets the body alone, without frames of HTTP.
    """

    __slots__ = ("_bare", "_chunked", "_exchange", "_head", "_meter", "_of_turn")

    def __init__(
        self, exchange: Exchange, admitted: AdmittedCall, answer: AnswerHead, altered: bool, meter: Meter
    ) -> None:
        self._meter = meter
        routed, socket = admitted.head.routed, exchange.connection.socket
        length = None if altered else answer.length
        self._exchange = exchange
        self._of_turn = socket is not None
        self._chunked = False
        self._bare = routed.method == b"HEAD" or answer.status in NO_BODY
        keep_alive = exchange.decide_keep_alive()
        if socket is not None:
            self._head = b""
            fields = _refusal_fields(admitted, answer) + exchange.turn_fields
            socket.begin_answer(answer.status, answer.content_type, fields)
            return
        if length is not None:
            framing = b"\r\ncontent-length: %d" % length if answer.status != 204 else b""
        elif self._bare:
            framing = b""
        elif routed.minor == 1:
            self._chunked = True
            framing = b"\r\ntransfer-encoding: chunked"
        else:
            framing = b""
            exchange.until_close = True
            exchange.keep_alive = keep_alive = False
        self._head = _answer_head(admitted, answer, framing, keep_alive)

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
        _, body = render(refusal, exchange.head.routed.family, exchange.request_id)
        said = self._meter.fail(body)
        if said:
            self.end(said)
        return bool(said)

    def _send(self, data: bytes, last: bool) -> None:
        """Write a part of the answer to the client, with the head before the first one."""
        if self._bare:
            data = b""
        exchange = self._exchange
        if self._of_turn:
            exchange.write_turn(data, last)
        elif not exchange.opened:
            exchange.write(self._head + data)
        elif data:
            exchange.write(data)


def _answer_head(admitted: AdmittedCall, answer: AnswerHead, framing: bytes, keep_alive: bool) -> bytes:
    """Return the head for the client: the forwarded fields, then those of the gateway.

    `framing` is the field about the body's length or chunks, or empty.
    """
    head, decision = admitted.head, _shown_decision(admitted, answer.status)
    text, family = answer.text, FAMILIES[head.routed.family]
    date = ids = told = b""
    if head.cors:  # only the gateway decides which web pages may call
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
    if decision is not None:
        told = limit_lines(decision)
        if told:
            told = b"\r\n%b" % told
    fields = _own_fields(admitted, answer.status, decision)
    own = b"".join([b"\r\n%b: %b" % field for field in fields]) if fields else b""
    ending = _ending(head, admitted.request_id, admitted.attempt.waited_ms, keep_alive)
    return b"%b%b%b%b%b%b%b" % (text, date, ids, framing, told, own, ending)


def _shown_decision(admitted: AdmittedCall, status: int) -> Admitted | None:
    """Return the decision whose limits an answer states; of a free route none are."""
    # Next to the upstream's own, our limits would mislead.
    return admitted.decision if admitted.service.id and status not in LIMITED else None


def _own_fields(admitted: AdmittedCall, status: int, decision: Admitted | None) -> list[Header]:
    """Return the gateway's fields about an upstream's answer, besides those of limits."""
    attempt, by, fields = admitted.attempt, admitted.call.aim.substitution, list[Header]()
    if admitted.worker.limits.show_upstream:
        fields.append((b"x-tollkeeper-upstream", attempt.name.encode()))
    if by is not None:
        fields.append((b"x-tollkeeper-model", _quote(attempt.model, "/:@")))
        fields.append((b"x-tollkeeper-substituted-by", _quote(by.budget, "")))
    if status in HELD_OFF:
        fields.append((b"x-tollkeeper-refused-by", b"upstream"))
    if decision is not None and decision.budget is not None:
        budget_fields = FAMILIES[admitted.head.routed.family].budget_fields
        if budget_fields is not None:
            fields += budget_fields(decision.budget, None)
    return fields


def _refusal_fields(admitted: AdmittedCall, answer: AnswerHead) -> list[Header]:
    """Return the fields of an upstream's refusal, with the gateway's; of another answer none."""
    if 200 <= answer.status < 300:
        return []
    decision = _shown_decision(admitted, answer.status)
    lines = [line.partition(b":") for line in answer.lines[1:]]
    return [
        *[(name.lower(), value.strip()) for name, _, value in lines],
        *([] if decision is None else limit_headers(decision)),
        *_own_fields(admitted, answer.status, decision),
    ]


def own_answer(exchange: Exchange, status: int, fields: list[Header], body: bytes) -> None:
    """Send a whole answer that the gateway made."""
    exchange.status, request_head = status, exchange.head
    began = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Refused" % status
    lines = [began, b"date: " + _date(int(time.time()))]
    if status not in {204, 304}:  # RFC 9110, 8.6
        lines.append(b"content-length: %d" % len(body))
    lines += [b"%b: %b" % field for field in fields]
    waited_ms, keep_alive = exchange.attempt.waited_ms, exchange.decide_keep_alive()
    head = b"\r\n".join(lines) + _ending(request_head, exchange.request_id, waited_ms, keep_alive)
    exchange.write(head if request_head.routed.method == b"HEAD" else head + body)


def _ending(head: CallHead, id_: str, waited_ms: int, keep_alive: bool) -> bytes:
    """Return the last header fields of every answer to the request `id_`, and the blank line."""
    routed, request_id = head.routed, id_.encode()
    named = cors = waited = last = b""
    if FAMILIES[routed.family].names_requests:
        named = b"\r\nrequest-id: %b" % request_id
    if head.cors:
        cors = b"\r\n%b" % head.cors
    if waited_ms:
        waited = b"\r\nx-tollkeeper-waited-ms: %d" % waited_ms
    if not keep_alive:
        last = b"\r\nconnection: close"
    elif routed.minor == 0:
        last = b"\r\nconnection: keep-alive"
    return b"\r\nx-request-id: %b%b%b%b%b\r\n\r\n" % (request_id, named, cors, waited, last)


@lru_cache(NAMES_REMEMBERED_MAX)
def _quote(name: str, safe: str) -> bytes:
    """Return the name of a model or budget for a field of a response; `safe` stays as it is."""
    return quote(name, safe=safe).encode()


@lru_cache(2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
