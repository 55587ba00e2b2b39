"""What a call asks for, and whether it may: read from its body, checked for its caller.

Whatever refuses a call by its body waits until its head was admitted: who is blocked or over a
limit of requests is told of that first, and a refused request is one of its sender's all the same.
"""

from __future__ import annotations

import re
from functools import partial
from urllib.parse import unquote_to_bytes

from gateway.core.calls.call import Call
from gateway.core.calls.claims import read_call
from gateway.core.credentials import WORKLOAD
from gateway.core.families.family import is_list, narrowed, one_of
from gateway.core.families.registry import FAMILIES
from gateway.core.model import GENERIC, NO_SERVICE, USER_REQUIRED, Caller, Patterns, Service, on_list
from gateway.errors import (
    InvalidApiKey,
    InvalidRequest,
    ModelNotAllowed,
    ModelNotPriced,
    Refusal,
    ServiceNotIncluded,
    TooManyBudgets,
    UserRequired,
)
from gateway.http.charge import Charge, admitted_at, prices_under
from gateway.http.ports import Directory
from gateway.http.routing.head import CallHead, Proof
from gateway.http.routing.routes import read_objects
from gateway.http.server.buffers import full
from gateway.http.server.exchange import Exchange

# Which models a caller is told of: those it could call, by its key, its services and their prices.


# A model that nobody has and no price is of.
_UNHEARD_OF = "\0"
# Whoever asks for another form of an answer than JSON by its query does so by this.
_FORM = b"alt"
_ACCEPT = b"accept:"


def is_allowed(caller: Caller, model: str) -> bool:
    """Whether a model is on the list of the caller's key, where that has one."""
    models = caller.models
    return models is None or model in models or on_list(model, models)


def narrow(exchange: Exchange, caller: Caller, call: Call) -> None:
    """Let a list of models show those alone that its caller may call; 403 for another one by its name."""
    routed = exchange.routed
    route, listing = routed.route, FAMILIES[routed.family].lists
    if route is None or listing is None or routed.method != b"GET":
        return
    model = "" if is_list(route) else one_of(route, routed.params).removeprefix(listing.prefix)
    if not model and not is_list(route):
        return
    services = _services(exchange, caller)
    own, patterns = caller.models, Patterns(caller.models or ())

    def shows(name: str) -> bool:
        if own is not None and name not in own and not patterns.hold(name):
            return False
        return services is None or any(_may_call(exchange, caller, one, name) for one in services)

    if model:
        if not shows(model):
            raise ModelNotAllowed(f"This API key may not use the model {model}.")
    elif own is not None or services is not None:
        call.narrow = lambda document: narrowed(document, listing, shows)
        call.strip_usage = True  # a list that is read must not be compressed, and is as long as it gets


def asked_as_json(opening: bytes, passed: bytes) -> tuple[bytes, bytes]:
    """How an upstream's request begins, and the lines that pass, so that its answer can be looked through."""
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


def _services(exchange: Exchange, caller: Caller) -> list[Service] | None:
    """The services of this upstream that the caller may use; None where each may call any model there is."""
    worker = exchange.worker
    ports = worker.ports
    keys = worker.heads.bindings.services_at(exchange.routed.upstream)
    found: list[Service] = []
    for key in keys:
        try:
            service = ports.directory.resolve(caller, key)
        except ServiceNotIncluded:
            continue
        if service is not None:
            found.append(service)
    if not keys or (len(found) == len(keys) and all(_takes_any(exchange, caller, one) for one in found)):
        return None
    return found


def _takes_any(exchange: Exchange, caller: Caller, service: Service) -> bool:
    """Whether a model without a price could be called as well."""
    return _may_call(exchange, caller, service, _UNHEARD_OF)


def _may_call(exchange: Exchange, caller: Caller, service: Service, model: str) -> bool:
    """Whether a call of a model would be admitted as far as its price decides."""
    ports, said = exchange.worker.ports, exchange.head.attribution
    call = Call("none", exchange.routed.family, b"", model=model)
    try:
        budgets = None
        if service.id:
            budgets = ports.directory.budgets(caller, service.id, said, call, False)
        prices_under(ports, caller, service, call, budgets)
    except (ModelNotPriced, TooManyBudgets):
        return False
    return True


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


# Whom a credential stands for, where it may have been digested under an earlier pepper.


async def identify_by_any(directory: Directory, proof: Proof) -> Caller:
    """The caller by whichever digest is known; the next call of this proof begins with that one."""
    digests = (proof.digest, *proof.others)
    wrong = InvalidApiKey()
    for digest in digests:
        try:
            caller = directory.cached(digest) or await directory.identify(digest)
        except InvalidApiKey as error:
            wrong = error
            continue
        proof.digest, proof.others = digest, tuple([one for one in digests if one != digest])
        return caller
    raise wrong


# Workloads known by the certificate of their connection, such as one with a SPIFFE id: whose key they use.
#
# Sources: SPIFFE's X.509-SVID (the one URI of a certificate is the id); RFC 5280, 4.2.1.6. The certificate
# was verified in the handshake, by the authorities that settings name.


def by_certificate(exchange: Exchange, refusal: Refusal) -> CallHead:
    """The head of a call that carries no key, with that of its workload; else the refusal it has earned."""
    head, keys = exchange.head, exchange.worker.workloads
    if not keys or head.routed.query_refusal is not None or not _is_missing(refusal):
        raise refusal
    digests = keys.get(exchange.connection.transport.get_extra_info(WORKLOAD) or "")
    if digests is None:
        raise refusal
    call = CallHead(head.routed, Proof(digests[0], others=digests[1:]), head.said)
    call.attribution, call.parent = head.attribution, head.parent
    call.passed, call.source, call.cors = head.passed, head.source, head.cors
    return call


def _is_missing(refusal: Refusal) -> bool:
    return isinstance(refusal, InvalidApiKey) and refusal.failure == "missing"
