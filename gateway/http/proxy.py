"""THE HOT PATH: one request from its first line to its last byte, as one story.

Route, identify, read the call, reserve, ask the upstream, relay through the meter, settle
before the end. The coroutine is driven straight from socket callbacks (`story.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.core.call import Call, read_call
from gateway.core.model import Caller, Service
from gateway.errors import (
    ModelNotAllowed,
    Refusal,
    RequestTooLarge,
    ServiceNotIncluded,
    UnknownRoute,
    UpstreamUnreachable,
)
from gateway.http.charge import Charge, reserve
from gateway.http.clock import Clock
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.framing import chunk
from gateway.http.limits import HttpLimits
from gateway.http.link import Link
from gateway.http.ports import Ports
from gateway.http.relay import AnswerCut, relay
from gateway.http.reply import own_answer, refuse
from gateway.http.routes import USAGE_PATH
from gateway.http.upstream import Upstream

_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


@dataclass(frozen=True, slots=True)
class Worker:
    """What every story of one worker shares."""

    ports: Ports
    limits: HttpLimits
    clock: Clock
    upstreams: Mapping[str, Upstream]


async def proxy(exchange: Exchange, worker: Worker) -> None:
    """Admit one call, forward it, charge what it used."""
    try:
        service = _route(exchange, worker.ports)
        caller = await _identify(exchange, worker.ports)
        if exchange.plan.label == USAGE_PATH:
            own_answer(exchange, 200, _JSON, await worker.ports.usage(caller))
            return
        call = await _read_call(exchange, caller)
        if service is None:
            await _forward(exchange, worker, call, None)
        else:
            charge = await reserve(exchange, worker.ports, caller, service, call)
            await _forward(exchange, worker, call, charge)
    except Refusal as error:
        refuse(exchange, error)
    except AnswerCut as error:
        exchange.reason = "answer_cut"
        exchange.broken = exchange.opened = True
        worker.ports.log(
            "answer_cut", request_id=exchange.request_id, route=exchange.plan.label, why=str(error)
        )
    except ClientGone:
        exchange.reason = "client_gone"
        exchange.broken = True


def _route(exchange: Exchange, ports: Ports) -> Service | None:
    """The service the route charges, None for a free route; 404 or 405 for what is not on the list."""
    plan = exchange.plan
    if plan.refusal is not None:
        raise plan.refusal
    if not plan.metered:
        return None
    service = ports.directory.service(plan.service_key)
    if service is None:
        raise UnknownRoute if plan.params.get("service_key") else ServiceNotIncluded
    return service


async def _identify(exchange: Exchange, ports: Ports) -> Caller:
    """Who calls, or 401."""
    plan = exchange.plan
    if plan.identity_refusal is not None:
        raise plan.identity_refusal
    caller = ports.directory.cached(plan.digest)
    return caller if caller is not None else await ports.directory.identify(plan.digest)


async def _read_call(exchange: Exchange, caller: Caller) -> Call:
    """What is asked for: 413, 400 or 403 where that cannot be, may not be, or cannot be known."""
    plan = exchange.plan
    assert plan.route is not None
    if exchange.too_large:
        raise RequestTooLarge
    if plan.field_refusal is not None:
        raise plan.field_refusal
    body = await exchange.body() if plan.buffered else b""
    call = read_call(plan.route, plan.params, body)
    if caller.models is not None and call.model and call.model not in caller.models:
        raise ModelNotAllowed(f"This API key may not use the model {call.model}.")
    return call


async def _forward(exchange: Exchange, worker: Worker, call: Call, charge: Charge | None) -> None:
    """Ask the upstream and bring its answer back; a hold is settled or released on every way out."""
    plan = exchange.plan
    upstream = worker.upstreams.get(plan.upstream)
    link: Link | None = None
    try:
        if exchange.gone:
            raise ClientGone
        if upstream is None:
            raise UpstreamUnreachable(f"No upstream {plan.upstream} is configured.")
        exchange.began_upstream = worker.ports.seconds()
        link = upstream.idle() or await upstream.connect()
        _send(exchange, link, call)
        answer = await link.head()
    except BaseException as failure:
        if link is not None:
            link.abandon()
        if charge is not None:
            await charge.release()
        if isinstance(failure, Refusal):
            worker.ports.tally.upstream_failures += 1
        raise
    try:
        await relay(exchange, worker.ports, worker.limits, link, answer, call, charge)
    finally:
        if exchange.charge is not None:  # nobody foresaw this end
            await exchange.charge.settle(answer.status, False)
        if exchange.body_complete:
            upstream.give_back(link)
        else:
            link.abandon()


def _send(exchange: Exchange, link: Link, call: Call) -> None:
    """Send the request in one write; a body that is still arriving follows by itself."""
    plan = exchange.plan
    opening = plan.plain_opening if call.strip_usage else plan.opening
    request_id = exchange.request_id.encode()
    if plan.buffered:
        body = call.body
        link.begin(
            b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (opening, request_id, len(body), body),
            False,
        )
        return
    body = exchange.arrived_body()
    complete = exchange.body_complete
    if complete:
        stated = body or exchange.body_length is not None or plan.chunked
        framing = b"content-length: %d\r\n" % len(body) if stated else b""
    elif plan.chunked:
        framing = b"transfer-encoding: chunked\r\n"
        body = chunk(body) if body else b""
    else:
        framing = b"content-length: %d\r\n" % (exchange.body_length or 0)
    head = b"%bx-request-id: %b\r\n%b\r\n%b" % (opening, request_id, framing, body)
    link.begin(head, plan.method == b"HEAD")
    if not complete:
        exchange.invite_body()
        exchange.connection.stream_body(link, plan.chunked)
