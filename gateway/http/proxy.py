"""THE HOT PATH: one request from its first line to its last byte, as one coroutine.

Route, identify, read the call, reserve, ask the upstream, relay through the meter, settle
before the end. The coroutine is driven straight from socket callbacks (`server/buffers.py`), so what
needs no waiting is a plain function here: a coroutine less is a microsecond less.
"""

from __future__ import annotations

from gateway.core.calls.call import is_light
from gateway.core.metering.meters import make_meter
from gateway.core.model import Caller
from gateway.core.wait import OVER
from gateway.errors import (
    CountersRefused,
    CountersUnavailable,
    InternalError,
    InvalidApiKey,
    ObjectNotFound,
    Overloaded,
    Refusal,
    ServiceNotIncluded,
    UnknownRoute,
    UpstreamFailure,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.http.admission import (
    by_certificate,
    by_head,
    claimed,
    comes_soon,
    identify_by_any,
    read_asked,
    read_in_turn,
)
from gateway.http.charge import Charge
from gateway.http.protocol.answer import LIMITED
from gateway.http.relay import (
    Outlet,
    is_collected,
    leave_alone,
    left_alone,
    note_limits,
    relay_body,
    send_request,
    take_told,
)
from gateway.http.reply import Fault, note_refused, own_answer, refuse, refuse_wrong
from gateway.http.routing.head import RoutedHead
from gateway.http.routing.routes import USAGE_PATH
from gateway.http.server.buffers import bare
from gateway.http.server.exchange import ClientGone, Exchange
from gateway.http.upstream.pool import Upstream

ANSWER_CUT, CLIENT_GONE = "answer_cut", "client_gone"
# What the journal says of an answer that was read to its end, where its client is gone and where it is not.
_LEFT, _TOLD = (0, CLIENT_GONE), (0, "")
_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


async def proxy(exchange: Exchange) -> None:
    """Admit one call, forward it, charge what it used. Where that ends by an error, `given_up` follows."""
    worker = exchange.worker
    ports = worker.ports
    routed = _route(exchange)
    head = exchange.head
    proof = head.proof
    digest = proof.digest
    if proof.token:
        caller = ports.tokens.cached(digest) or await ports.tokens.identify(digest, proof.token)
    else:
        known = ports.directory
        caller = known.cached(digest) or await (
            identify_by_any(known, proof) if proof.others else known.identify(digest)
        )
    exchange.caller = caller
    if head.news is not None:
        worker.heads.remember(head)
    if routed.label == USAGE_PATH:
        usage = await ports.usage(caller, head.attribution)
        own_answer(exchange, 200, _JSON, usage)
        return
    if worker.buffers.pressed:
        worker.buffers.check_new(caller)
    held: Charge | None = None
    body, connection = b"", exchange.connection
    if routed.buffered and exchange.body_failure is None:
        if not connection.body_complete and not await comes_soon(exchange, caller):
            # Blocked, rate and slots come before its bytes.
            held = by_head(exchange, caller)
            await held.reserve()
            await exchange.late_body(worker.limits.body_bytes_max)
        body = connection.body.take_parts()
    read = (read_asked(exchange, body), held) if is_light(body) else None
    found, held = read or await read_in_turn(exchange, caller, body, held)
    if not isinstance(found, Refusal):
        exchange.call = found
    claim = claimed(exchange, caller, found, held)
    if (
        isinstance(claim, Charge)
        and claim.call.named
        and not await ports.objects.owned(caller, claim.call.named)
    ):
        claim = ObjectNotFound()
    if ports.cooling.entries and isinstance(claim, Charge):
        claim = left_alone(exchange, caller, claim.call) or claim
    if isinstance(claim, Refusal):
        if held is None:
            await by_head(exchange, caller).reserve()
        raise claim
    await claim.reserve()
    await _forward(exchange, caller, claim)
    await OVER


async def given_up(exchange: Exchange, error: BaseException) -> None:
    """Give back what a call that failed was admitted with, and say what came of it."""
    expected = isinstance(error, Refusal | ClientGone) or not isinstance(error, Exception)
    failure = bare(error if expected else Fault(error))  # of any other only its type and place
    exchange.leave_upstream()
    caller, charge = exchange.caller, exchange.charge
    if charge is not None and charge.due:
        abandoned, told = _is_abandoned(exchange, failure), _came_to(exchange, failure)
        await charge.settle(exchange.status, False, abandoned, told)
    if isinstance(failure, Fault) and caller is not None and charge is None:
        failure = await _counted(exchange, caller, failure)
    if caller is not None and not exchange.opened and isinstance(failure, Refusal | Fault):
        note_refused(exchange, caller, failure)
    if isinstance(failure, InvalidApiKey):
        exchange.worker.ports.tally.refused(0, failure.reason)
        await refuse_wrong(exchange, failure)
    else:
        _tell(exchange, failure)


def _came_to(exchange: Exchange, failure: BaseException) -> tuple[int, str]:
    """What the client is told of a call that failed, and why it did."""
    if isinstance(failure, ClientGone):
        return 0, CLIENT_GONE
    if exchange.opened:
        return 0, ANSWER_CUT
    refusal = failure if isinstance(failure, Refusal) else InternalError()
    return refusal.status, refusal.reason


def _is_abandoned(exchange: Exchange, failure: BaseException) -> bool:
    """Whether it is the client's doing that an answer an upstream had begun on came to nothing.

    So is a call with tokens that is not answered in time: its caller chose what to ask, and it was read.
    """
    whole = exchange.connection.body_complete
    if isinstance(failure, UpstreamUnreachable):
        return False
    if whole and isinstance(failure, UpstreamTimeout):
        call = exchange.call
        return exchange.forwarded and not exchange.status and call is not None and call.has_input
    return exchange.forwarded and (exchange.gone or not whole)


async def _counted(exchange: Exchange, caller: Caller, fault: Fault) -> BaseException:
    """A call that failed before it was admitted is one of its sender's as a refused one is."""
    charge = by_head(exchange, caller)
    failure: BaseException = fault
    try:
        await charge.reserve()
    except Refusal as refusal:
        failure = bare(refusal)
    except Exception as error:  # noqa: BLE001  # the first one is told
        bare(error)
    if charge.due:
        await charge.settle(0, False)
    return failure


def _tell(exchange: Exchange, failure: BaseException) -> None:
    """Say what came of a call that was not answered in full; an error nobody expects is raised again.

    Once an answer is begun, its client is only told that it is cut.
    """
    ports, caller = exchange.worker.ports, exchange.caller
    if isinstance(failure, UpstreamFailure):
        _tell_of_upstream(exchange, failure)
    elif isinstance(failure, CountersRefused):
        _tell_of_counters(exchange, failure)
    if isinstance(failure, Refusal) and not exchange.opened:
        if failure.reason:  # else it is an answer to a browser's question
            ports.tally.refused(caller.tenant_id if caller is not None else 0, failure.reason)
        refuse(exchange, failure)
    elif isinstance(failure, Refusal):
        # That we stop is told in the answer. What its upstream broke off, or was not charged, is broken off.
        outlet = exchange.outlet if isinstance(failure, Overloaded) else None
        exchange.reason, exchange.broken = ANSWER_CUT, outlet is None or not outlet.fail(failure)
        ports.log(
            "answer_cut",
            request_id=exchange.request_id,
            route=exchange.routed.label,
            why=failure.message,
        )
    elif isinstance(failure, ClientGone):
        exchange.reason, exchange.broken = CLIENT_GONE, True
    else:
        raise failure


def _tell_of_upstream(exchange: Exchange, failure: UpstreamFailure) -> None:
    """Count a failure of an upstream, and tell of some: all of them are in the journal of calls."""
    ports, name = exchange.worker.ports, exchange.routed.upstream
    ports.tally.upstream_failed(name, failure.cause)
    count = ports.failing.note(name, failure.cause, ports.seconds())
    if count:
        ports.log(
            "upstream_failed",
            request_id=exchange.request_id,
            upstream=name,
            cause=failure.cause,
            why=failure.detail or failure.message,
            failures=count,
            level="warning",
        )


def _tell_of_counters(exchange: Exchange, failure: CountersRefused) -> None:
    """Say what the counters answered, now and then: its caller is told that they are unavailable."""
    ports = exchange.worker.ports
    count = ports.failing.note("", failure.reason, ports.seconds())
    if count:
        said = {"request_id": exchange.request_id, "why": failure.message, "failures": count}
        ports.log("counters_refused", **said, level="error")


def _route(exchange: Exchange) -> RoutedHead:
    """The plan of a call: 404 or 405 for what is not on the list, 401 where no credential can be read."""
    head, worker = exchange.head, exchange.worker
    routed = head.routed
    if routed.bound and routed.route is not None:  # where its service is bound may have changed meanwhile
        current = worker.heads.bindings.binding_of(routed.service_key, routed.route)
        if current is not routed.binding:
            head = exchange.head = worker.heads.read_by_line(head.source)
            routed = exchange.routed = head.routed
    if routed.refusal is not None:
        raise routed.refusal
    if routed.metered and worker.ports.directory.service(routed.service_key) is None:
        raise UnknownRoute if routed.params.get("service_key") else ServiceNotIncluded
    if head.identity_refusal is not None:
        exchange.head = by_certificate(exchange, head.identity_refusal)
    return routed


async def _forward(exchange: Exchange, caller: Caller, charge: Charge) -> None:
    """Ask the upstream and bring its answer back; where that fails the hold is still due."""
    worker, call = exchange.worker, charge.call
    if is_collected(exchange, worker.limits):
        await exchange.late_body(worker.limits.collected_bytes_max)
    upstream = _upstream(exchange)
    upstream.admit(caller.organization_id)
    exchange.upstream = upstream
    exchange.began_upstream = worker.ports.seconds()
    link = exchange.link = upstream.idle() or await upstream.connect()
    send_request(exchange, link, call)
    while link.answer is None and link.failure is None:
        await link.arrival()
    answer = link.answer
    if answer is None:
        raise link.failure or UpstreamUnreachable()
    exchange.connection.body.let_go()  # whoever answers has read what was asked
    status = exchange.status = answer.status
    limited = status in LIMITED
    if limited:
        note_limits(exchange, call, answer)
    meter = make_meter(
        call,
        status,
        answer.content_type,
        answer.content_encoding,
        worker.bounds,
        usage_amount=answer.usage_amount,
    )
    charge.meter, charge.upstream_id = meter, answer.request_id or answer.plain_request_id
    altered = call.strip_usage and 200 <= status < 300
    outlet = exchange.outlet = Outlet(exchange, answer, charge.limits_shown, altered, meter)
    if link.complete and not answer.content_encoding and call.narrow is None:
        tail = meter.whole(link.take_payload())
    else:
        tail = await relay_body(exchange, caller, link, charge, meter, outlet)
    if call.units_pointer and meter.unread:
        raise UpstreamUnreachable("The upstream's answer is no document that could say its units.")
    if limited:
        leave_alone(exchange, call, answer, meter.detail.retry_s)
    if meter.told and (made := take_told(meter, call)):
        # Whose the objects are is noted before their ids are known.
        kept = worker.ports.objects.keep(caller, made)
        if not charge.charges:  # what was charged is delivered all the same
            await kept
    exchange.ended_upstream = worker.ports.seconds()
    told = _LEFT if exchange.gone else _TOLD
    if charge.settles_after_reply:
        outlet.end(tail)
        await charge.settle(status, True, False, told)
    else:
        if not await charge.settle(
            status, True, False, told
        ):  # an answer that may not have been charged is never completed
            raise CountersUnavailable(retry_after_s=1)
        outlet.end(tail)
    exchange.leave_upstream()


def _upstream(exchange: Exchange) -> Upstream:
    if exchange.gone:
        raise ClientGone
    if exchange.body_failure is not None:
        raise exchange.body_failure
    upstream = exchange.worker.upstreams.get(exchange.routed.upstream)
    if upstream is None:
        raise UpstreamUnreachable(f"No upstream {exchange.routed.upstream} is configured.")
    return upstream
