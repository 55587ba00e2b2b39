"""Which models a caller is told of: those it could call, by its key, its services and their prices."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from gateway.core.calls.call import Call
from gateway.core.calls.patterns import Patterns, on_list
from gateway.core.families.listing import is_list, narrowed, one_of
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Caller, Service
from gateway.errors import ModelNotAllowed, ModelNotPriced, ServiceNotIncluded, TooManyBudgets
from gateway.http.priced import prices_under
from gateway.http.server.exchange import Exchange

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
