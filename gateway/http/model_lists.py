"""Lists of models show only models that the caller may call, by its key, its services and their prices."""

from __future__ import annotations

from typing import Final

from gateway.calls.permit import lists_of
from gateway.calls.terms import consider
from gateway.core.calls.call import NO_FILTER, AnswerFilter, Body, CallRequest, CallSpec, NameCheck
from gateway.core.calls.facts import aim_of
from gateway.core.calls.models import ModelTable, named_by
from gateway.core.families.family import Listing, filter_models
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Caller, Family, Patterns, Service
from gateway.errors import ModelNotAllowed, ModelNotPriced, ServiceNotIncluded, TooManyBudgets
from gateway.http.routing.head import CallHead
from gateway.http.server.exchange import Worker

# A name of a model that cannot exist, and has no price.
_UNHEARD_OF: Final = "\0"


def narrow(
    worker: Worker, head: CallHead, caller: Caller, call: CallRequest, listing: Listing
) -> AnswerFilter:
    """Return what removes models that the caller may not call from a list.

    Raise 403 if the path names such a model.
    """
    routed, directory = head.routed, worker.ports.directory
    services, model = _services(worker, head, caller), routed.listed
    user = caller.acts_for(head.attribution.user, call.spec.user)
    lists = [(whose, listed, Patterns(listed)) for whose, listed in lists_of(directory, caller, user)]
    configured = worker.models.table()

    def shows(name: str) -> bool:
        for _, listed, patterns in lists:
            if name not in listed and not patterns.hold(name):
                return False
        if configured.rules and not _is_open(configured, caller, name):
            return False
        made = checks is not None and name.lower().startswith(begins) and name not in checks.own
        if made and not configured.names_itself(name, caller.organization_id, begins):
            return False
        return services is None or any(_may_call(worker, head, caller, service, name) for service in services)

    rules, owned = FAMILIES[routed.family].objects, routed.owned
    is_apart = owned is not None and owned.apart and not listing.prefix
    begins = rules.models if is_apart else ()
    checks = NameCheck(begins) if begins and not model else None
    ours = _configured_models(worker, routed.family, caller, configured) if configured.rules else []
    if model:
        if not shows(model):
            raise ModelNotAllowed(f"This API key may not use the model {model}.")
        if model in ours:
            return AnswerFilter(listing.render_model(model))
    elif ours:
        return AnswerFilter(listing.written([name for name in ours if shows(name)]))
    elif lists or services is not None or configured.rules or checks is not None:
        decides = bool(lists or services is not None or configured.rules)
        return AnswerFilter(
            narrow=lambda document: (
                filter_models(document, listing, shows, checks)
                if decides or any(one.encode() in document.lower() for one in begins)
                else iter((document,))  # the document names no model
            ),
            checks=checks,
        )
    return NO_FILTER


def _configured_models(worker: Worker, family: Family, caller: Caller, models: ModelTable) -> list[str]:
    """Return the configured models of the caller's organization that answer in the requested list's API."""
    names: list[str] = []
    for name in models.names(caller.organization_id):
        rule = models.find(name, caller.organization_id)
        targets = () if rule is None else rule.targets
        known = [
            worker.upstreams[target.upstream] for target in targets if target.upstream in worker.upstreams
        ]
        families = [upstream.target.family for upstream in known]
        if any(not own or own == family for own in families):
            names.append(name)
    return names


def _services(worker: Worker, head: CallHead, caller: Caller) -> list[Service] | None:
    """Return the caller's services at the upstream of a head, or None if they allow any model."""
    ports = worker.ports
    keys = worker.heads.bindings.services_at(head.routed.upstream)
    catalogue = ports.directory.catalogue()
    there = [key for key in keys if key in catalogue]  # services that do not exist yet are left out
    services: list[Service] = []
    for key in there:
        try:
            service = ports.directory.resolve(caller, key)
        except ServiceNotIncluded:
            continue
        if service is not None:
            services.append(service)
    # A service allows any model if even a model without a price may be called.
    is_any = len(services) == len(there) and all(
        _may_call(worker, head, caller, one, _UNHEARD_OF) for one in services
    )
    if is_any and (there or not keys):
        return None
    return services


def _may_call(worker: Worker, head: CallHead, caller: Caller, service: Service, model: str) -> bool:
    """Return whether the model has every price, budget and permission that a call of it needs."""
    ports, said = worker.ports, head.attribution
    call = CallRequest("none", head.routed.family, Body(), CallSpec(model))
    try:
        if (table := worker.models.table()).rules:
            rule = table.find(model, caller.organization_id)
            call.take_aim(aim_of(call, targets=() if rule is None else named_by(rule, model)))
        consider(ports, caller, said, call, service)
    except (ModelNotPriced, ModelNotAllowed, TooManyBudgets):
        return False
    return True


def _is_open(configured: ModelTable, caller: Caller, name: str) -> bool:
    """Return whether the caller's organization may use a model `name`; the operator can reserve names."""
    try:
        configured.find(name, caller.organization_id)
    except ModelNotAllowed:
        return False
    return True
