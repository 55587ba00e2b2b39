"""What a call asks for, and whether it may: read from its body, checked for its caller.

Whatever refuses a call by its body waits until its head was admitted: who is blocked or over a
limit of requests is told of that first, and a refused request is one of its sender's all the same.
"""

from __future__ import annotations

from functools import partial

from gateway.core.calls.call import Call
from gateway.core.calls.reading import read_call
from gateway.core.model import GENERIC, NO_SERVICE, USER_REQUIRED, Caller, Service
from gateway.errors import (
    InvalidRequest,
    ModelNotAllowed,
    Refusal,
    ServiceNotIncluded,
    TooManyBudgets,
    UserRequired,
)
from gateway.http.charge import Charge
from gateway.http.listed import is_allowed, narrow
from gateway.http.priced import admitted_at
from gateway.http.routing.call_head import CallHead
from gateway.http.routing.objects import read_objects
from gateway.http.server.buffers import full
from gateway.http.server.exchange import Exchange

# What is known of a call before its body.
_UNREAD = Call("none", GENERIC, b"")


def by_head(exchange: Exchange, caller: Caller) -> Charge:
    """A claim on one request and one concurrency slot of every scope, and nothing else."""
    return Charge(exchange, caller, NO_SERVICE, _UNREAD)


async def comes_soon(exchange: Exchange, caller: Caller) -> bool:
    """Whether a body that did not come with its head is here a moment later: clients send it after that."""
    soon = exchange.connection.body_soon(caller)
    if soon is not None:
        await soon
    return exchange.connection.body_complete


def read_asked(exchange: Exchange, body: bytes) -> Call | Refusal:
    """What is asked for, or why that cannot be known: 413 or 400."""
    routed = exchange.routed
    refusal = exchange.body_failure or exchange.head.refusal
    if refusal is not None:
        return refusal
    assert routed.route is not None
    try:
        call = read_call(routed.route, routed.params, body, exchange.worker.bounds)
        owned = routed.owned
        if owned is not None:
            if owned.bare and (exchange.body_length or routed.chunked):
                return InvalidRequest(f"{routed.route.path} takes no body with this method.")
            read_objects(owned, call)
        return call
    except Refusal as unreadable:
        return unreadable


async def read_in_turn(
    exchange: Exchange, caller: Caller, body: bytes, held: Charge | None
) -> tuple[Call | Refusal, Charge]:
    """The same of a large body, in its organization's turn, and what is held by its head.

    Who is refused by its head takes no turn. All that waits counts in its caller's share.
    """
    if held is None:
        held = by_head(exchange, caller)
        await held.reserve()
    if not exchange.connection.body.claim(caller, len(body)):
        return full(), held
    read = partial(read_asked, exchange, body)
    return await exchange.worker.bodies.read(caller.organization_id, read), held


def claimed(
    exchange: Exchange, caller: Caller, found: Call | Refusal, held: Charge | None
) -> Charge | Refusal:
    """A claim on all the call asks for, which raises what is held already; or why it may not be made."""
    try:
        call = _allowed(caller, found, exchange.head)
        service = _service(exchange, caller)
        said, ports = exchange.head.attribution, exchange.worker.ports
        prices, budgets = admitted_at(ports, caller, service, said, call)
        if not exchange.routed.metered:
            narrow(exchange, caller, call)
    except Refusal as refusal:
        if isinstance(refusal, TooManyBudgets):
            exchange.worker.ports.tally.budgets_exceeding += 1
        return refusal
    return Charge(exchange, caller, service, call, held, prices, budgets)


def _allowed(caller: Caller, found: Call | Refusal, head: CallHead) -> Call:
    """The call, where its key may ask for every model that may answer; 403 where it may not.

    What is charged needs a user, where the key says so: 400 without.
    """
    if isinstance(found, Refusal):
        raise found
    asks = caller.user_header == USER_REQUIRED and head.routed.metered
    if asks and not caller.acts_for(head.attribution.user, found.user):
        raise UserRequired(param="x-tollkeeper-user")
    if caller.models is not None and found.model:
        for model in (found.model, *found.models_beside):
            if not is_allowed(caller, model):
                raise ModelNotAllowed(f"This API key may not use the model {model}.")
    elif caller.models is not None and head.routed.any_model:
        raise ModelNotAllowed(
            "This API key may use some models alone, and this route does not read which one."
        )
    return found


def _service(exchange: Exchange, caller: Caller) -> Service:
    """The service at its price for this caller, which nothing changes any more for this call."""
    routed, worker = exchange.routed, exchange.worker
    if not routed.metered:
        return NO_SERVICE
    service = worker.ports.directory.resolve(caller, routed.service_key)
    if service is None:
        raise ServiceNotIncluded
    if routed.binding is not None and routed.binding.overlapping:
        worker.heads.bindings.check_price(routed.binding, service, caller)
    return service
