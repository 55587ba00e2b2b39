"""Forwards a call to its upstream, and applies the upstream's own limits.

These limits belong to the account that all callers share: if an answer to one of them says that a limit is
used up, all calls wait.
"""

from __future__ import annotations

import asyncio
import math
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final, cast
from urllib.parse import unquote_to_bytes
from uuid import UUID

from gateway.core.calls.call import CallRequest
from gateway.core.calls.facts import fit_body
from gateway.core.calls.models import check_word
from gateway.core.calls.routes import ANY as EVERY_FIELD
from gateway.core.calls.routes import CREDIT, FAILED, TOLD, UNREACHABLE
from gateway.core.calls.routes import LIMITED as FALLBACK_LIMITED
from gateway.core.circuit_breaker import EVERYBODY, KEYS_TELL_EACH_S
from gateway.core.families.credit import (
    ACCOUNT,
    CREDIT_STATUSES,
    ERROR_BYTES_MAX,
    may_show_credit,
    read_credit,
)
from gateway.core.families.refusal import RETRY_HELPS_S
from gateway.core.families.registry import FAMILIES, SHAPES
from gateway.core.families.seals import can_open
from gateway.core.metering.meters import make_meter
from gateway.core.model import Caller
from gateway.core.traces import Trace
from gateway.core.wait_hints import wait_hint
from gateway.errors import (
    Overloaded,
    Refusal,
    UnknownRoute,
    UpstreamFailure,
    UpstreamFull,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.http.admitted_call import AdmittedCall
from gateway.http.ports import Ports
from gateway.http.protocol.answer import LIMITED, AnswerHead
from gateway.http.protocol.request import field_kind, known_fields
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.server.buffers import bare
from gateway.http.server.exchange import Attempt, ClientGone, ClientPort, Exchange, Worker
from gateway.http.upstream.pool import Link, Upstream

# A longer body is sent separately, instead of being copied next to the head.
JOINED_BYTES_MAX: Final = 16 * 1024
# The query parameter that selects another format of answer than JSON.
_FORM: Final = b"alt"
# How long a key is not used after a refusal that states no time, if there are other keys.
KEY_LEFT_ALONE_S: Final = 5.0
# How long an error's body is awaited before the next target may be asked.
ERROR_S_MAX: Final = 1.0
_ACCEPT: Final = b"accept:"
UPGRADE: Final = (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
)


def forward(exchange: Exchange, admitted: AdmittedCall) -> Awaitable[AnswerHead]:
    """Forward a call and return the head of its answer. If this fails, the hold still has to be settled."""
    call = admitted.call
    if call.aim.targets:
        return _try_targets(exchange, admitted)
    if call.aim.facts:
        fit_body(call, call.aim.facts[0])
    if admitted.worker.ports.empty.entries:
        asked = _ask_unless_empty(admitted, 0, partial(_send_to_target, exchange, admitted))
        return cast("Awaitable[AnswerHead]", asked)  # there is no next target
    return _send_to_target(exchange, admitted)


async def _send_to_target(exchange: Exchange, admitted: AdmittedCall, last: bool = True) -> AnswerHead:
    """Forward a call to its current upstream; keep the body for another target unless this is the `last`."""
    worker, connection, attempt, call = exchange.worker, exchange.connection, admitted.attempt, admitted.call
    routed, received, caller = admitted.head.routed, connection.body, admitted.caller
    upstream = worker.upstreams.get(attempt.name)
    if upstream is None:
        raise UpstreamUnreachable(f"No upstream {attempt.name} is configured.")
    if call.aim.targets or routed.varies:
        _begin(admitted, upstream)
    opening = _opening(admitted, upstream, exchange.trace)
    if not routed.buffered or received.long:
        await connection.small_body(caller, worker.limits.collected_bytes_max)
    if exchange.gone:
        raise ClientGone
    if received.failure is not None:
        raise received.failure
    if upstream.limiter is not None and admitted.charges:
        waits = last or FALLBACK_LIMITED not in call.aim.fallback
        await upstream.limiter.take(admitted, upstream, waits)
    upstream.admit(caller.organization_id)
    attempt.upstream = upstream
    if not attempt.started_s:
        attempt.started_s = worker.ports.seconds()
    link = attempt.link = upstream.idle() or await upstream.connect()
    if exchange.gone:  # the client left while we connected: nothing was sent yet
        raise ClientGone
    _send(connection, admitted, upstream, link, opening, last)
    # What opens a WebSocket is no work yet.
    attempt.forwarded = link.failure is None and routed.opens is None
    while link.answer is None and link.failure is None:
        await link.arrival()
    answer = link.answer
    if answer is None:
        raise link.failure or UpstreamUnreachable()
    if last and received.kept:
        received.stop_counting()  # the answer proves that the upstream read the request
    _take_head(admitted, upstream, answer)
    attempt.empty = (
        await _hear_credit(admitted, upstream, link, answer) if answer.status in CREDIT_STATUSES else ""
    )
    return answer


async def late_answer(admitted: AdmittedCall) -> AnswerHead:
    """Return the head of an answer that arrives after the deadline of its call.

    Raise the connection's failure if no answer arrives.
    """
    attempt = admitted.attempt
    link, upstream = attempt.link, attempt.upstream
    assert link is not None
    assert upstream is not None
    link.go_past()
    while link.answer is None and link.failure is None:
        await link.arrival()
    answer = link.answer
    if answer is None:
        raise link.failure or UpstreamUnreachable()
    if admitted.meter is None:
        _take_head(admitted, upstream, answer)
        admitted.keep_price_of_target()
    return answer


def note_failure(ports: Ports, request_id: str, name: str, failure: UpstreamFailure) -> None:
    """Count a failure of an upstream, and log it at intervals; the journal of calls has every failure."""
    ports.tally.upstream_failed(name, failure.cause)
    count = ports.failing.note(name, failure.cause, ports.seconds())
    if count:
        ports.log(
            "upstream_failed", request_id=request_id, upstream=name, cause=failure.cause,
            why=failure.detail or failure.message, failures=count, level="warning",
        )  # fmt: skip


def _send(  # noqa: PLR0917  # what goes where
    connection: ClientPort, admitted: AdmittedCall, upstream: Upstream, link: Link, opening: bytes, last: bool
) -> None:
    """Send the part of the request that has arrived; the connection forwards later parts when they come.

    `opening` is the head without the fields that frame the body. Unless `last`, the body is kept for another
    target.
    """
    received, call, routed, side = connection.body, admitted.call, admitted.head.routed, link.side
    model, signer = admitted.attempt.model, upstream.signer
    if routed.opens is not None:
        side.upgrades = True
        if signer is not None:
            opening += signer.sign(opening, b"")
        key = socket_key(admitted.request_id)
        link.begin_request(side.ask(b"%b%b%b\r\n" % (opening, UPGRADE, key), None, False))
    elif routed.buffered and not received.long:
        body = call.write_for(model) if call.aim.targets else call.take_body()
        if signer is not None:
            opening += signer.sign(opening, body)
        if len(body) <= JOINED_BYTES_MAX:
            link.begin_request(side.ask(opening, body, False))
        else:
            link.begin_request(side.ask_before(opening, len(body)), body)
        if last and call.aim.targets:
            call.drop_body(body)
    elif connection.body_complete:
        body = _renamed(call, model, received.take_parts())
        framed = body or received.length is not None or routed.chunked
        if signer is not None:
            opening += signer.sign(opening, body)
        link.begin_request(side.ask(opening, body if framed else None, routed.method == b"HEAD"))
    else:  # the rest follows as it arrives
        if signer is not None:
            opening += signer.sign(opening, None)
        taken = received.take_parts()
        parts, stated = _renamed(call, model, taken), received.length
        length = None if routed.chunked or stated is None else stated + len(parts) - len(taken)
        link.begin_request(side.ask_in_parts(opening, length, parts, routed.method == b"HEAD"))
        connection.invite_body()
        connection.stream_body(link)


def socket_key(request_id: str) -> bytes:
    """Return the Sec-WebSocket-Key of an exchange, derived from its request id (RFC 6455, 4.1)."""
    return b64encode(UUID(request_id).bytes)


def _renamed(call: CallRequest, model: str, begun: bytes) -> bytes:
    """Return the beginning of a form with the upstream's name of the model; other bodies are unchanged."""
    if not call.aim.targets or call.body.model_at is None:
        return begun
    call.body.content = begun
    begun = call.write_for(model)
    call.body.content = b""
    return begun


def _take_head(admitted: AdmittedCall, upstream: Upstream, answer: AnswerHead) -> None:
    """Process the head of an answer: apply the upstream's limits, and create the call's meter."""
    worker, attempt, call = admitted.worker, admitted.attempt, admitted.call
    attempt.status = answer.status
    worker.ports.tally.answered(upstream.name, answer.status)
    if worker.ports.empty.entries and _shows_money(admitted):
        worker.ports.empty.answered(_account(admitted, upstream, attempt.key), attempt.started_s)
    if answer.status in {401, 403}:
        _tell_of_key(admitted, upstream, answer.status)
    if upstream.limiter is not None:
        upstream.limiter.learn(upstream, attempt.model or call.spec.model, attempt.key, answer)
    if answer.status in LIMITED:  # pause the upstream for the time in the answer's head
        tokens = call.input_estimate + (call.output_max or 0) * call.spec.choices
        wait_s, spent = wait_hint(answer.lines[1:], tokens, worker.ports.refusals.now_ms() / 1000)
        if not wait_s and len(upstream.accounts) > 1:
            wait_s = KEY_LEFT_ALONE_S
        _pause_upstream(admitted, answer, wait_s, spent)
    admitted.upstream_id = answer.request_id or answer.plain_request_id
    admitted.meter = make_meter(
        call, answer.status, answer.content_type, answer.content_encoding, worker.bounds,
        usage_amount=answer.usage_amount,
    )  # fmt: skip


def _tell_of_key(admitted: AdmittedCall, upstream: Upstream, status: int) -> None:
    """Log that an upstream refuses the gateway's credential, and in which setting or file the credential is.

    The same failure is logged once a minute at most.
    """
    ports, place = admitted.worker.ports, upstream.target.place_of_key(admitted.attempt.key)
    count = ports.failing.note(upstream.name, place, ports.seconds(), KEYS_TELL_EACH_S)
    if count:
        ports.log(
            "upstream_refuses_us", request_id=admitted.request_id, upstream=upstream.name, status=status,
            held_in=place, failures=count, level="error" if status == 401 else "warning",
        )  # fmt: skip


# Statuses by which an upstream refuses a body for its content.
REFUSING: Final = frozenset({400, 422})


def hear_refusal(admitted: AdmittedCall, answer: AnswerHead, body: bytes, retry_s: float) -> None:
    """Process an upstream's refusal because of a limit or of a field that the gateway added.

    `body` is the end of the answer. `retry_s` is the time in seconds until calls to the upstream resume.
    """
    if answer.status in LIMITED:
        _pause_upstream(admitted, answer, retry_s)
    elif answer.status in REFUSING:
        _tell_of_fields(admitted, answer.status, body)


def _tell_of_fields(admitted: AdmittedCall, status: int, answer: bytes) -> None:
    """Log, once a minute, the field added by the gateway that made an upstream refuse a call.

    If the field is a maximum, the upstream's list of models is read from then on, because it may state that
    maximum.
    """
    call, upstream = admitted.call, admitted.attempt.upstream
    names = [*call.body.put_in, call.body.renamed, "stream_options" if call.strip_usage else ""]
    name = next((one for one in names if one and one.encode() in answer), "")
    if not name or upstream is None:
        return
    shape, ports = SHAPES.get(call.meter), admitted.worker.ports
    if shape is not None and name in {shape.maximum, call.body.renamed} and upstream.target.auth == "header":
        upstream.listed = True
    count = ports.failing.note(upstream.name, f"field {name}", ports.seconds(), KEYS_TELL_EACH_S)
    if count:
        ports.log(
            "upstream_refuses_field", request_id=admitted.request_id, upstream=upstream.name, status=status,
            field=name, maximum=call.output_max, failures=count, level="warning",
        )  # fmt: skip


# A call whose model has several targets: if one fails before its answer begins, the call goes to the next.
#
# Each target gets the call once. After the head of an answer there is no other attempt. A request that must
# not be sent twice ends at the first target that may have worked on it.


async def _try_targets(exchange: Exchange, admitted: AdmittedCall) -> AnswerHead:
    """Forward a call to the targets of its model in order, until one answers."""
    worker, attempt, call = admitted.worker, admitted.attempt, admitted.call
    connection, targets = exchange.connection, call.aim.targets
    for number, target in enumerate(targets):
        last = number + 1 == len(targets)
        answer: AnswerHead | None = None
        failure: Refusal | None = None
        cause: str
        attempt.name, attempt.model, attempt.key = target.upstream, target.model, 0
        if call.aim.facts:
            fit_body(call, call.aim.facts[number])
        cooling = None
        if worker.ports.circuit_breaker.entries:
            cooling = _paused_refusal(worker, admitted.head.routed, attempt, admitted.caller, call)
        if cooling is not None:
            failure, cause = cooling, FALLBACK_LIMITED
        else:
            try:
                answer = await (
                    _ask_unless_empty(admitted, number, partial(_send_to_target, exchange, admitted, last))
                    if worker.ports.empty.entries
                    else _send_to_target(exchange, admitted, last)
                )
            except (UpstreamFailure, UpstreamFull) as error:
                failure = bare(error)
            except Overloaded as error:  # no free connection; other overloads are this gateway's
                if attempt.upstream is not None:
                    raise
                failure = bare(error)
            cause = (
                FALLBACK_LIMITED if isinstance(failure, UpstreamFull) else _cause_of(answer, attempt, call)
            )
        passes = not last and not exchange.gone and cause in call.aim.fallback
        passes = passes and (call.aim.repeats or cause in {FALLBACK_LIMITED, CREDIT} or not attempt.forwarded)
        passes = passes and (not attempt.empty or _may_go_on(admitted, number))
        if answer is not None and not passes:
            if not last:
                call.drop_body(call.body.content)
                connection.body.stop_counting()
            admitted.keep_price_of_target()
            return answer
        if not passes:
            raise failure or UpstreamUnreachable()
        if isinstance(failure, UpstreamTimeout) and attempt.forwarded and connection.body_complete:
            attempt.unanswered = True
        _record_fallback(admitted, cause, failure)
    raise UpstreamUnreachable


def _cause_of(answer: AnswerHead | None, attempt: Attempt, call: CallRequest) -> str:
    """Return the reason to try the next target after this answer (None: no answer); "" if it is final."""
    if attempt.empty and CREDIT in call.aim.fallback:
        return CREDIT
    if answer is None:
        return UNREACHABLE
    if answer.status in LIMITED:  # the upstream did not process the call
        return FALLBACK_LIMITED
    return FAILED if 500 <= answer.status <= 599 else ""


def _record_fallback(admitted: AdmittedCall, cause: str, failure: Refusal | None) -> None:
    """Count and log the failure of an upstream before the next target is tried."""
    ports, attempt = admitted.worker.ports, admitted.attempt
    name, link = attempt.name, attempt.link
    ports.tally.passed_over(name, cause)
    attempt.failed_before += ((name, cause),)
    why = failure.cause if isinstance(failure, UpstreamFailure) else cause
    if isinstance(failure, UpstreamFailure):
        ports.tally.upstream_failed(name, why)
    count = ports.failing.note(name, why, ports.seconds())
    if count:
        ports.log(
            "upstream_passed_over", request_id=admitted.request_id, upstream=name, cause=why, failures=count,
            level="warning",
        )  # fmt: skip
    if link is not None and link.complete:
        link.take_payload()
    attempt.leave(admitted.caller)
    if admitted.room is not None:
        admitted.leave_room(0)
    attempt.forwarded = attempt.chosen = False
    attempt.status, attempt.empty = 0, ""
    admitted.meter, admitted.upstream_id = None, b""


# An account that is out of money or quota: its calls go to another key, or to the next target.
#
# If no other can be asked, the account is asked all the same, and its answer is the caller's.


async def _ask_unless_empty(
    admitted: AdmittedCall, number: int, ask: Callable[[], Awaitable[AnswerHead]]
) -> AnswerHead | None:
    """Choose the first key of the current upstream that is not left alone as empty, and `ask` the upstream.

    If all keys are left alone, return None if the call may go to the target behind `number`, and ask with the
    first key otherwise.
    """
    ports, attempt = admitted.worker.ports, admitted.attempt
    upstream = admitted.worker.upstreams.get(attempt.name)
    if upstream is None:
        return await ask()
    kind, name = _pause_scope(admitted.head.routed, attempt.model or admitted.call.spec.model)
    left, is_question, account = True, False, ""
    for key in range(len(upstream.accounts)):
        now = ports.seconds()
        pause = ports.circuit_breaker.of(_entry(upstream, key, kind, name), now)
        if pause is not None and pause.concerns(admitted.caller.organization_id):
            continue
        account = _account(admitted, upstream, key)
        left, is_question = await ports.empty.leaves_alone(account, now)
        if not left or _stays(admitted):
            attempt.key, attempt.chosen = key, True
            break
    if left and CREDIT in admitted.call.aim.fallback and _may_go_on(admitted, number):
        attempt.empty = ACCOUNT
        return None
    try:
        return await ask()
    finally:
        if is_question and attempt.empty != ACCOUNT and not _shows_money(admitted):
            ports.empty.ask_again(account, ports.seconds())


def _account(admitted: AdmittedCall, upstream: Upstream, key: int) -> str:
    """Return the account that a call has at its upstream with one of its keys.

    Headers that name the caller may hold its own credential: then each caller named has an account. Empty where an
    upstream limits single callers: such an account is never left alone.
    """
    target = upstream.target
    if target.limits != "account":
        return ""
    names = {name for _, value in target.told for name in TOLD.findall(value)} - {"priority"}
    words = _words(admitted.caller, "")
    return ".".join((upstream.accounts[key], *[f"{name}-{words[name]}" for name in sorted(names)]))


def _shows_money(admitted: AdmittedCall) -> bool:
    """Return whether the answer is a good one that a vendor's account has paid for."""
    routed = admitted.head.routed
    kind = SHAPES.get(routed.route.meter) if routed.route is not None else None
    paid = kind is not None and not (kind.stores or kind.unpaid) and bool(FAMILIES[routed.family].credit)
    return paid and 200 <= admitted.attempt.status < 300


async def _hear_credit(admitted: AdmittedCall, upstream: Upstream, link: Link, answer: AnswerHead) -> str:
    """Return what is out of money or quota by an answer, as `read_credit` does; note an account."""
    signs, attempt, ports = (
        FAMILIES[admitted.head.routed.family].credit,
        admitted.attempt,
        admitted.worker.ports,
    )
    if not may_show_credit(signs, answer.status):
        return ""
    subject = read_credit(signs, answer.status, await short_body(link, answer))
    account = _account(admitted, upstream, attempt.key)
    if subject != ACCOUNT or not account:
        return subject
    if ports.empty.note(account, upstream.name, answer.status, ports.seconds()):
        ports.log(
            "upstream_empty", request_id=admitted.request_id, upstream=upstream.name, status=answer.status,
            held_in=upstream.target.place_of_key(attempt.key), level="error",
        )  # fmt: skip
    return subject


async def short_body(link: Link, answer: AnswerHead) -> bytes:
    """Return the body of a short answer, which stays to be read; empty if it is long, slow, compressed or cut."""
    if answer.content_encoding or (answer.length or 0) > ERROR_BYTES_MAX:
        return b""
    body, late = link.take_payload(), list[bool]()

    def end() -> None:
        late.append(True)
        link.wake()

    timer = asyncio.get_running_loop().call_later(ERROR_S_MAX, end)
    while len(body) <= ERROR_BYTES_MAX and not link.complete and link.failure is None and not late:
        await link.arrival()
        body += link.take_payload()
    timer.cancel()
    link.put_back(body)
    return body if link.complete and len(body) <= ERROR_BYTES_MAX else b""


def _may_go_on(admitted: AdmittedCall, number: int) -> bool:
    """Return whether a target is behind `number`, and takes all that an account of this one may have sealed."""
    call = admitted.call
    if number + 1 >= len(call.aim.targets):
        return False
    models = call.aim.targets[number].model, call.aim.targets[number + 1].model
    return can_open(FAMILIES[admitted.head.routed.family].seals, call.body.content, models)


def _stays(admitted: AdmittedCall) -> bool:
    """Return whether a call stays with one account of its upstream, which made what it names or sealed."""
    call, seals = admitted.call, FAMILIES[admitted.head.routed.family].seals
    model = admitted.attempt.model or call.spec.model
    return bool(call.objects.named) or not can_open(seals, call.body.content, (model, model))


def _begin(admitted: AdmittedCall, upstream: Upstream) -> None:
    """Choose the upstream's key for a call, and prepare the request line if it depends on the model."""
    call, worker, attempt, routed = admitted.call, admitted.worker, admitted.attempt, admitted.head.routed
    if len(upstream.accounts) > 1 and not attempt.chosen:
        _paused_refusal(worker, routed, attempt, admitted.caller, call)
    model = attempt.model or call.spec.model
    if upstream.target.by_model and not model:
        raise UnknownRoute(
            f"The upstream {upstream.name} has paths by model alone, and this call names none."
        )
    if upstream.target.by_model and not attempt.model:
        check_word(model)
    attempt.opening = worker.heads.router.opening(routed, upstream.target, model)


def _opening(admitted: AdmittedCall, upstream: Upstream, trace: Trace | None) -> bytes:
    """Return the head of the request to the upstream, without the fields that frame its body."""
    head, begins, call = admitted.head, admitted.attempt.opening, admitted.call
    routed, passed = head.routed, head.passed
    if head.others or routed.unpassed:
        passed += _others(admitted, upstream)
    if begins is None:
        beginning, closing = routed.opening, routed.closing_plain if call.alters_answer else routed.closing
    else:
        beginning = begins.opening
        closing = (begins.plain if call.alters_answer else begins.closings)[admitted.attempt.key]
        if begins.dropped:
            lines = passed.splitlines(keepends=True)
            passed = b"".join([one for one in lines if one.partition(b":")[0].lower() not in begins.dropped])
    if trace is not None:
        closing += trace.line
    if upstream.target.told:
        closing += _render_fields(upstream.target.told, admitted.caller, head.attribution.priority)
    if call.answer_filter.narrow is not None:
        beginning, passed = _json_opening(beginning, passed)
    return b"".join((beginning, passed, closing, b"x-request-id: ", admitted.request_id.encode(), b"\r\n"))


def _others(admitted: AdmittedCall, upstream: Upstream) -> bytes:
    """Return those of a head's lines that clients of its API do not send, and that its upstream gets.

    Fields that it does not get are counted.
    """
    head, names = admitted.head, upstream.other_fields
    passed, withheld = list[bytes](), head.routed.unpassed.split()
    for line in head.others.splitlines(keepends=True):
        name = line.partition(b":")[0]
        kind = known_fields.get(name) or field_kind(name)
        if kind.lower.decode() in names or (EVERY_FIELD in names and not kind.chooses):
            passed.append(line)
        else:
            withheld.append(kind.lower)
    for name in withheld:
        admitted.worker.ports.tally.withheld(upstream.name, name.decode())
    return b"".join(passed)


def _render_fields(fields: tuple[tuple[str, str], ...], caller: Caller, priority: str) -> bytes:
    """Return the configured header lines of an upstream; their placeholders get values of the call.

    The values are the organization, the tenant, and the `priority` of the call or of its caller.
    """
    words = _words(caller, priority)
    lines = [f"{name}: {TOLD.sub(lambda found: words[found[1]], value)}\r\n" for name, value in fields]
    return "".join(lines).encode("latin-1")


def _words(caller: Caller, priority: str) -> dict[str, str]:
    """Return what placeholders in headers stand for."""
    return {
        "organization": str(caller.organization_id),
        "tenant": str(caller.tenant_id),
        "priority": priority or caller.priority,
    }


def _json_opening(opening: bytes, passed: bytes) -> tuple[bytes, bytes]:
    """Return the beginning and the forwarded fields (`passed`) of a request, changed to accept only JSON."""
    line, end, rest = opening.partition(b"\r\n")
    method, target, minor = line.split(b" ")
    path, _, query = target.partition(b"?")
    query = b"&".join([pair for pair in re.split(rb"[&;]", query) if pair and not _is_form(pair)])
    line = b" ".join((method, path + b"?" + query if query else path, minor))
    lines = [one for one in passed.splitlines(keepends=True) if not one.lower().startswith(_ACCEPT)]
    return line + end + rest, b"".join((*lines, _ACCEPT, b" application/json\r\n"))


def _is_form(pair: bytes) -> bool:
    name = pair.partition(b"=")[0].replace(b"+", b" ")
    return unquote_to_bytes(name).strip().lower() == _FORM


# An upstream's own limits: calls that exceed them are refused here.
def check_circuit(
    worker: Worker, routed: RoutedHead, attempt: Attempt, caller: Caller, call: CallRequest
) -> None:
    """Raise `UpstreamLimited` if the upstream, or every target of a call with targets, is paused."""
    refusal = _paused_refusal(worker, routed, attempt, caller, call)
    if refusal is None:
        return
    if FALLBACK_LIMITED in call.aim.fallback:
        for target in call.aim.targets[1:]:
            attempt.name, attempt.model = target.upstream, target.model
            if _paused_refusal(worker, routed, attempt, caller, call) is None:
                return
        first = call.aim.targets[0]
        attempt.name, attempt.model = first.upstream, first.model
    worker.ports.tally.cooled_calls[attempt.name] += 1
    raise refusal


def _paused_refusal(
    worker: Worker, routed: RoutedHead, attempt: Attempt, caller: Caller, call: CallRequest
) -> UpstreamLimited | None:
    """Return the refusal of a call if all keys of its upstream are paused.

    Otherwise set the attempt's key to the first usable one, and return None.
    """
    ports, upstream = worker.ports, worker.upstreams.get(attempt.name)
    if upstream is None:
        return None
    now, found = ports.seconds(), None
    kind, name = _pause_scope(routed, attempt.model or call.spec.model)
    for key in range(len(upstream.accounts)):
        one = ports.circuit_breaker.of(_entry(upstream, key, kind, name), now)
        if one is None or not one.concerns(caller.organization_id):
            attempt.key = key
            return None
        if found is None or one.until < found.until:
            found = one
    assert found is not None
    wait_s = max(1, math.ceil(found.until - now))
    until = datetime.fromtimestamp(ports.refusals.now_ms() // 1000 + wait_s, UTC)
    refusal = UpstreamLimited(
        f"Limit of the upstream {upstream.name}: it takes no calls of the {kind} {name} "
        f"until {until:%Y-%m-%dT%H:%M:%SZ}. Try again in {wait_s} s.",
        retry_after_s=wait_s,
        retry_helps=found.told_until - now <= RETRY_HELPS_S,
    )
    refusal.fields = tuple(_field(line) for line in found.fields)
    return refusal


def _pause_upstream(admitted: AdmittedCall, answer: AnswerHead, wait_s: float, spent: bool = False) -> None:
    """Stop sending calls like a refused one to its upstream for `wait_s` seconds, within the maximum.

    The pause concerns all callers if a limit of the account is `spent`, else only the caller's organization.
    """
    attempt, routed, ports = admitted.attempt, admitted.head.routed, admitted.worker.ports
    upstream = attempt.upstream
    if upstream is None or upstream.target.limits != "account":
        return
    entry = _entry(upstream, attempt.key, *_pause_scope(routed, attempt.model or admitted.call.spec.model))
    whose = EVERYBODY if spent else admitted.caller.organization_id
    more_s = ports.circuit_breaker.begin(entry, wait_s, answer.limits, ports.seconds(), whose)
    if more_s:
        ports.tally.cooling_seconds[upstream.name] += more_s
        ports.log(
            "upstream_limited", request_id=admitted.request_id, upstream=upstream.name, route=routed.label,
            status=answer.status, seconds=round(more_s, 3),
        )  # fmt: skip


def _entry(upstream: Upstream, key: int, kind: str, name: str) -> str:
    return f"{upstream.accounts[key]} {kind} {name}"


def _pause_scope(routed: RoutedHead, model: str) -> tuple[str, str]:
    """Return the scope of a pause, as kind and name: the model, the service, or a free route's path."""
    if not routed.metered:
        return "path", routed.label
    return ("model", model) if model else ("service", routed.service_key)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.strip(b" \t")
