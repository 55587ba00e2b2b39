"""THE HOT PATH: one request from its first line to its last byte, as one coroutine.

Route, identify, read the call, reserve, ask the upstream, relay through the meter, settle
before the end. The coroutine is driven straight from socket callbacks (`request_driver.py`), so what
needs no waiting is a plain function here: a coroutine less is a microsecond less.
"""

from __future__ import annotations

from gateway.core.calls.call import Call
from gateway.core.metering.making import AnswerMeter, make_meter
from gateway.core.model import Caller
from gateway.errors import (
    CountersUnavailable,
    InvalidApiKey,
    ObjectNotFound,
    Refusal,
    ServiceNotIncluded,
    UnknownRoute,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.http.admission import by_head, claimed, comes_soon, read, read_beside, shed, turn_down
from gateway.http.charge import Charge
from gateway.http.faults import Fault
from gateway.http.protocol.answer import AnswerHead
from gateway.http.relay import AnswerCut, Outlet, relay_body, take_told
from gateway.http.reply import own_answer, refuse, refuse_wrong
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.routing.routes import USAGE_PATH
from gateway.http.server.exchange import ClientGone, Exchange
from gateway.http.server.outgoing import is_collected, send
from gateway.http.server.request_driver import bare
from gateway.http.upstream.connection import Link
from gateway.http.upstream.pool import Upstream
from gateway.http.worker import Worker

_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


async def proxy(exchange: Exchange, worker: Worker) -> None:
    """Admit one call, forward it, charge what it used."""
    ports = worker.ports
    caller: Caller | None = None
    charge: Charge | None = None
    failure: BaseException | None = None
    counted = False
    try:
        routed = _route(exchange, worker)
        caller = ports.directory.cached(routed.digest) or await ports.directory.identify(routed.digest)
        if routed.head:
            worker.head_router.remember(routed)
        if routed.label == USAGE_PATH:
            own_answer(
                exchange, 200, _JSON, await ports.usage(caller, caller.acts_for(routed.attribution.user))
            )
            return
        if worker.buffers.pressed:
            shed(worker, caller)
        exchange.caller = caller
        body, connection = b"", exchange.connection
        if routed.buffered and exchange.body_failure is None:
            if not connection.body_complete and not await comes_soon(exchange, caller):
                # Blocked, rate and slots come before its bytes.
                charge = by_head(exchange, worker, caller)
                await charge.reserve()
                counted = True
                await exchange.late_body(worker.limits.body_bytes_max)
            body = connection.body()
        at_once = len(body) <= worker.limits.body_at_once_bytes_max
        found = read(exchange, worker, body) if at_once else await read_beside(exchange, worker, body)
        claim = claimed(exchange, worker, caller, found, charge)
        if (
            isinstance(claim, Charge)
            and claim.call.named
            and not await ports.objects.owned(caller, claim.call.named)
        ):
            claim = ObjectNotFound()
        if isinstance(claim, Refusal):
            charge = charge or by_head(exchange, worker, caller)
            await turn_down(charge, claim)
        else:
            charge = claim
            await charge.reserve()
            counted = True
            exchange.charge = charge
            await _forward(exchange, worker, caller, charge.call, charge)
    except BaseException as error:  # noqa: BLE001  # told below, once what it was admitted with is released
        failure = bare(_known(error))
    if charge is not None:
        await charge.release()
    if failure is not None:
        if isinstance(failure, Fault) and caller is not None and not counted:
            failure = await _counted(exchange, worker, caller, failure)
        await _fail(exchange, worker, caller, failure)


async def _fail(exchange: Exchange, worker: Worker, caller: Caller | None, failure: BaseException) -> None:
    ports = worker.ports
    if isinstance(failure, InvalidApiKey):
        ports.tally.refused(0, failure.reason)
        await refuse_wrong(exchange, ports.failures, failure)
    else:
        _tell(exchange, worker, caller, failure)


def _known(error: BaseException) -> BaseException:
    """The error itself where a request expects it; of any other only its type and place."""
    if isinstance(error, Refusal | AnswerCut | ClientGone) or not isinstance(error, Exception):
        return error
    return Fault(error)


async def _counted(exchange: Exchange, worker: Worker, caller: Caller, fault: Fault) -> BaseException:
    """A call that failed before it was admitted is one of its sender's as a refused one is."""
    charge = by_head(exchange, worker, caller)
    failure: BaseException = fault
    try:
        await charge.reserve()
    except Refusal as refusal:
        failure = bare(refusal)
    except Exception as error:  # noqa: BLE001  # the first one is told
        bare(error)
    await charge.release()
    return failure


def _tell(exchange: Exchange, worker: Worker, caller: Caller | None, failure: BaseException) -> None:
    """Say what came of a call that was not answered in full; an error nobody expects is raised again."""
    ports = worker.ports
    if isinstance(failure, Refusal):
        ports.tally.refused(caller.tenant_id if caller is not None else 0, failure.reason)
        refuse(exchange, failure)
    elif isinstance(failure, AnswerCut):
        exchange.reason, exchange.broken = "answer_cut", True
        ports.log("answer_cut", request_id=exchange.request_id, route=exchange.routed.label, why=str(failure))
    elif isinstance(failure, ClientGone):
        exchange.reason, exchange.broken = "client_gone", True
    else:
        raise failure


def _route(exchange: Exchange, worker: Worker) -> RoutedHead:
    """The plan of a call: 404 or 405 for what is not on the list, 401 where no credential can be read."""
    routed = exchange.routed
    if routed.bound:
        routed = exchange.routed = _bound(routed, worker)
    if routed.refusal is not None:
        raise routed.refusal
    if routed.metered and worker.ports.directory.service(routed.service_key) is None:
        raise UnknownRoute if routed.params.get("service_key") else ServiceNotIncluded
    if routed.identity_refusal is not None:
        raise routed.identity_refusal
    return routed


def _bound(routed: RoutedHead, worker: Worker) -> RoutedHead:
    """The plan of a call that goes where its service is bound, which may have changed since it was made."""
    head_router = worker.head_router
    assert routed.route is not None
    current = head_router.bindings.of(routed.service_key, routed.route)
    return routed if current is routed.binding else head_router.route(routed.source)


async def _forward(exchange: Exchange, worker: Worker, caller: Caller, call: Call, charge: Charge) -> None:
    """Ask the upstream and bring its answer back; a hold is settled or released on every way out."""
    upstream = link = None
    organization_id = caller.organization_id
    failure: BaseException | None = None
    try:
        if is_collected(exchange, worker.limits):
            await exchange.late_body(worker.limits.collected_bytes_max)
        admitted = _upstream(exchange, worker)
        admitted.admit(organization_id)
        upstream = admitted
        exchange.began_upstream = worker.ports.seconds()
        link = upstream.idle() or await upstream.connect()
        send(exchange, link, call)
        while link.answer is None and link.failure is None:
            await link.arrival()
        answer = _answer(link)
        if exchange.connection.kept:  # whoever answers has read what was asked
            exchange.connection.let_go()
        status = exchange.status = answer.status
        meter = make_meter(
            call,
            status,
            answer.content_type,
            answer.content_encoding,
            worker.bounds,
            usage_amount=answer.usage_amount,
        )
        charge.meter = meter
        outlet = Outlet(exchange, answer, charge.told, call.strip_usage and 200 <= status < 300)
        if link.complete and not answer.content_encoding:
            tail = meter.whole(link.take())
        else:
            tail = await relay_body(exchange, worker, caller, link, call, charge, meter, outlet)
        if meter.told:
            await _own(worker, caller, meter, charge)
        exchange.ended_upstream = worker.ports.seconds()
        if charge.settles_after_reply:
            outlet.end(tail)
            await charge.settle(status, True)
        else:
            _check_charged(await charge.settle(status, True))
            outlet.end(tail)
    except BaseException as error:  # noqa: BLE001  # raised again below, once the hold is settled
        failure = error
    if upstream is not None:
        upstream.release(organization_id, link)
    if charge.due:
        await charge.settle(exchange.status, False, _is_abandoned(exchange, failure))
    if failure is not None:
        raise _told(exchange, worker, failure)


def _is_abandoned(exchange: Exchange, failure: BaseException | None) -> bool:
    """Whether it is the client's doing that an answer an upstream had begun on came to nothing."""
    whole = exchange.connection.body_complete
    if isinstance(failure, UpstreamUnreachable) or (whole and isinstance(failure, UpstreamTimeout)):
        return False
    return exchange.forwarded and (exchange.gone or not whole)


async def _own(worker: Worker, caller: Caller, meter: AnswerMeter, charge: Charge) -> None:
    """Note whose the objects are before their ids are known; what was charged is delivered all the same."""
    kept = worker.ports.objects.keep(caller, take_told(meter))
    if not charge.charges:
        await kept


def _told(exchange: Exchange, worker: Worker, failure: BaseException) -> BaseException:
    """What the client is told of a failure: once an answer is begun, only that it is cut."""
    if isinstance(failure, UpstreamUnreachable | UpstreamTimeout):
        _note_failure(exchange, worker, failure)
    if exchange.opened and isinstance(failure, Refusal):
        cut = AnswerCut(failure.message)
        cut.__cause__ = failure
        return cut
    return failure


def _note_failure(exchange: Exchange, worker: Worker, failure: Refusal) -> None:
    worker.ports.tally.upstream_failures += 1
    worker.ports.log(
        "upstream_failed",
        request_id=exchange.request_id,
        upstream=exchange.routed.upstream,
        why=failure.message,
    )


def _answer(link: Link) -> AnswerHead:
    """The head that has arrived, or why none will."""
    if link.answer is None:
        raise link.failure or UpstreamUnreachable()
    return link.answer


def _check_charged(acknowledged: bool) -> None:
    """An answer that may not have been charged is never completed."""
    if not acknowledged:
        raise CountersUnavailable(retry_after_s=1)


def _upstream(exchange: Exchange, worker: Worker) -> Upstream:
    if exchange.gone:
        raise ClientGone
    if exchange.body_failure is not None:
        raise exchange.body_failure
    upstream = worker.upstreams.get(exchange.routed.upstream)
    if upstream is None:
        raise UpstreamUnreachable(f"No upstream {exchange.routed.upstream} is configured.")
    return upstream
