"""THE HOT PATH: one request from its first line to its last byte, as one story.

Route, identify, read the call, reserve, ask the upstream, relay through the meter, settle
before the end. The coroutine is driven straight from socket callbacks (`story.py`), so what
needs no waiting is a plain function here: a coroutine less is a microsecond less.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from gateway.core.call import Call, read_call
from gateway.core.meter import AnswerMeter, make_meter
from gateway.core.model import USER_REQUIRED, Caller, Service
from gateway.core.patterns import on_list
from gateway.errors import (
    CountersUnavailable,
    ModelNotAllowed,
    ObjectNotFound,
    Refusal,
    ServiceNotIncluded,
    UnknownRoute,
    UpstreamTimeout,
    UpstreamUnreachable,
    UserRequired,
)
from gateway.http.answer import AnswerHead
from gateway.http.charge import Charge
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.link import Link
from gateway.http.objects import named_by
from gateway.http.outgoing import is_collected, send
from gateway.http.plan import Plan
from gateway.http.relay import AnswerCut, Outlet, relay_body, take_told
from gateway.http.reply import own_answer, refuse
from gateway.http.routes import USAGE_PATH
from gateway.http.upstream import Upstream
from gateway.http.worker import Worker

# A large body is read beside the loop, one at a time: all of its memory is bounded where it is read in.
_READER = ThreadPoolExecutor(1, "bodies")
_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


async def proxy(exchange: Exchange, worker: Worker) -> None:
    """Admit one call, forward it, charge what it used."""
    ports = worker.ports
    caller: Caller | None = None
    try:
        metered = _route(exchange, worker)
        plan = exchange.plan
        if plan.identity_refusal is not None:
            raise plan.identity_refusal
        caller = ports.directory.cached(plan.digest) or await ports.directory.identify(plan.digest)
        if plan.head:
            worker.planner.remember(plan)
        if plan.label == USAGE_PATH:
            own_answer(
                exchange, 200, _JSON, await ports.usage(caller, caller.acts_for(plan.attribution.user))
            )
            return
        body = b""
        if plan.buffered and exchange.body_failure is None:
            connection = exchange.connection
            if not connection.body_complete:
                await exchange.late_body(worker.limits.body_bytes_max)
            body = connection.body()
        at_once = len(body) <= worker.limits.body_at_once_bytes_max
        read = _read(exchange, worker, body) if at_once else await _read_beside(exchange, worker, body)
        call = _allowed(caller, read, plan)
        named = named_by(plan.owned, call) if plan.owned is not None else ()
        if named and not await ports.objects.owned(caller, named):
            raise ObjectNotFound
        if not metered:
            await _forward(exchange, worker, caller, call, None)
        else:
            charge = Charge(exchange, worker, caller, _service(exchange, worker, caller), call)
            await charge.reserve()
            exchange.charge = charge
            await _forward(exchange, worker, caller, call, charge)
    except Refusal as refusal:
        ports.tally.refused(caller.tenant_id if caller is not None else 0, refusal.reason)
        refuse(exchange, refusal)
    except AnswerCut as cut:
        exchange.reason, exchange.broken = "answer_cut", True
        ports.log("answer_cut", request_id=exchange.request_id, route=exchange.plan.label, why=str(cut))
    except ClientGone:
        exchange.reason, exchange.broken = "client_gone", True


def _route(exchange: Exchange, worker: Worker) -> bool:
    """Whether the route charges a service; 404 or 405 for what is not on the list."""
    plan = exchange.plan
    if plan.bound:
        plan = exchange.plan = _bound(plan, worker)
    if plan.refusal is not None:
        raise plan.refusal
    if plan.metered and worker.ports.directory.service(plan.service_key) is None:
        raise UnknownRoute if plan.params.get("service_key") else ServiceNotIncluded
    return plan.metered


def _bound(plan: Plan, worker: Worker) -> Plan:
    """The plan of a call that goes where its service is bound, which may have changed since it was made."""
    planner = worker.planner
    assert plan.route is not None
    current = planner.bindings.of(plan.service_key, plan.route)
    return plan if current is plan.binding else planner.plan(plan.source)


def _service(exchange: Exchange, worker: Worker, caller: Caller) -> Service:
    """The service at its price for this caller, which nothing changes any more for this call."""
    plan = exchange.plan
    service = worker.ports.directory.resolve(caller, plan.service_key)
    if service is None:
        raise ServiceNotIncluded
    if plan.binding is not None and plan.binding.rivals:
        worker.planner.bindings.check_price(plan.binding, service, caller)
    return service


def _read(exchange: Exchange, worker: Worker, body: bytes) -> Call | Refusal:
    """What is asked for, or why that cannot be known: 413 or 400."""
    plan = exchange.plan
    refusal = exchange.body_failure or plan.field_refusal
    if refusal is not None:
        return refusal
    assert plan.route is not None
    try:
        return read_call(plan.route, plan.params, body, worker.bounds)
    except Refusal as unreadable:
        return unreadable


async def _read_beside(exchange: Exchange, worker: Worker, body: bytes) -> Call | Refusal:
    """The same in a thread: a large body must not hold up the loop."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_READER, _read, exchange, worker, body)


def _allowed(caller: Caller, read: Call | Refusal, plan: Plan) -> Call:
    """The call, where its key may ask for every model that may answer; 403 where it may not.

    What is charged needs a user, where the key says so: 400 without.
    """
    if isinstance(read, Refusal):
        raise read
    asks = caller.user_header == USER_REQUIRED and plan.metered
    if asks and not caller.acts_for(plan.attribution.user, read.user):
        raise UserRequired(param="x-tollkeeper-user")
    if caller.models is not None and read.model:
        for model in (read.model, *read.models_beside):
            if model not in caller.models and not on_list(model, caller.models):
                raise ModelNotAllowed(f"This API key may not use the model {model}.")
    return read


async def _forward(
    exchange: Exchange, worker: Worker, caller: Caller, call: Call, charge: Charge | None
) -> None:
    """Ask the upstream and bring its answer back; a hold is settled or released on every way out."""
    upstream = link = None
    organization_id = caller.organization_id
    failure: BaseException | None = None
    try:
        admitted = _upstream(exchange, worker)
        if not exchange.connection.body_complete and is_collected(exchange, worker.limits):
            await exchange.late_body(worker.limits.collected_bytes_max)
        admitted.admit(organization_id)
        upstream = admitted
        exchange.began_upstream = worker.ports.seconds()
        link = upstream.idle() or await upstream.connect()
        send(exchange, link, call)
        while link.answer is None and link.failure is None:
            await link.arrival()
        answer = _answer(link)
        status = exchange.status = answer.status
        meter = make_meter(
            call,
            status,
            answer.content_type,
            answer.content_encoding,
            worker.bounds,
            usage_amount=answer.usage_amount,
        )
        decision = None
        if charge is not None:
            charge.meter, decision = meter, charge.decision
        outlet = Outlet(exchange, answer, decision, call.strip_usage and 200 <= status < 300)
        if link.complete:
            tail = meter.whole(link.take())
        else:
            tail = await relay_body(exchange, worker, caller, link, call, charge, meter, outlet)
        if meter.told:
            await _own(worker, caller, meter, charge)
        exchange.ended_upstream = worker.ports.seconds()
        if charge is None:
            outlet.end(tail)
        elif charge.settles_after_reply:
            outlet.end(tail)
            await charge.settle(status, True)
        else:
            _check_charged(await charge.settle(status, True))
            outlet.end(tail)
    except BaseException as error:  # noqa: BLE001  # raised again below, once the hold is settled
        failure = error
    if upstream is not None:
        upstream.release(organization_id, link)
    if charge is not None and charge.due:
        await charge.settle(exchange.status, False, _is_abandoned(exchange, failure))
    if failure is not None:
        raise _told(exchange, worker, failure)


async def _own(worker: Worker, caller: Caller, meter: AnswerMeter, charge: Charge | None) -> None:
    """Note whose the objects are before their ids are known; what was charged is delivered all the same."""
    kept = worker.ports.objects.keep(caller, take_told(meter))
    if charge is None:
        await kept


def _is_abandoned(exchange: Exchange, failure: BaseException | None) -> bool:
    """Whether it is the client's doing that an answer an upstream had begun on came to nothing."""
    whole = exchange.connection.body_complete
    if isinstance(failure, UpstreamUnreachable) or (whole and isinstance(failure, UpstreamTimeout)):
        return False
    return exchange.forwarded and (exchange.gone or not whole)


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
        upstream=exchange.plan.upstream,
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
    upstream = worker.upstreams.get(exchange.plan.upstream)
    if upstream is None:
        raise UpstreamUnreachable(f"No upstream {exchange.plan.upstream} is configured.")
    return upstream
