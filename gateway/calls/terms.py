"""The terms of a use: its models, aim, service, prices, budgets and run, checked before limits are asked."""

from __future__ import annotations

from typing import NamedTuple

from gateway.calls.aim import aim_at
from gateway.calls.permit import check_model_access, check_objects, named_objects
from gateway.calls.ports import AdmissionPorts, CallPorts, DirectoryPort
from gateway.calls.prices import check_parts, money_budgets, prices_of
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import Run, make_provisional
from gateway.core.calls.call import CallRequest
from gateway.core.calls.tariff import NO_PRICES, CallPrices, PriceMatch, know_reports
from gateway.core.calls.use_request import UseRequest
from gateway.core.model import NO_SERVICE, Attribution, Caller, RunRequest, Service
from gateway.errors import RunRequired, ServiceNotIncluded, UnknownRoute


class AdmissionTerms(NamedTuple):
    """What a use takes from and costs, as its admission found it; the same until it is charged."""

    service: Service
    prices: CallPrices
    budgets: CallBudgets | None
    run: Run | None  # None if it names none


def find_terms(ports: AdmissionPorts, asked: UseRequest) -> tuple[AdmissionTerms, CallRunPolicies | None]:
    """Return the terms of a use, and the policies by which its run is opened: None without a run to open.

    The targets of its call are set. Raise a `Refusal` if its key, models or prices do not allow it. Terms with
    a run that is not opened yet have a provisional one.
    """
    calls, kind, caller, call = ports.calls, asked.kind, asked.caller, asked.call
    directory, named, run, opening = calls.directory, asked.attribution.run, None, None
    if not kind.is_free:
        policies = _run_policies(directory, caller, named, kind.run_field)
        if named is not None:
            run = calls.runs.cached(caller, named)
            if run is None:
                run, opening = make_provisional(caller, named, policies), policies
    rule = check_model_access(
        ports.models, directory, asked.attribution, caller, call, asked.user, asked.without_model,
        kind.user_field,
    )  # fmt: skip
    call.take_aim(aim_at(ports, asked, rule))
    if kind.is_free:
        prices = prices_of(calls, caller, NO_SERVICE, call, None) if asked.service_key else NO_PRICES
        return AdmissionTerms(NO_SERVICE, prices, None, None), None
    service = directory.resolve(caller, asked.service_key)
    if service is None:
        raise ServiceNotIncluded
    if asked.overlapping:
        _check_overlapping(directory, caller, service, asked.overlapping)
    return price_terms(calls, asked, service, run), opening


def _run_policies(
    directory: DirectoryPort, caller: Caller, asked: RunRequest | None, field: str
) -> CallRunPolicies:
    """Return the run policies of a caller; one may require that each call names a run.

    Raise `RunRequired` if a run is required and `asked` is None; the message names the header field `field`.
    """
    policies = directory.run_policies(caller)
    if asked is None:
        for whose, policy in policies:
            if policy.required:
                raise RunRequired(f"Each call of this {whose} needs a run: name one in {field}.", param=field)
    return policies


def _check_overlapping(
    directory: DirectoryPort, caller: Caller, service: Service, overlapping: tuple[str, ...]
) -> None:
    """Raise `UnknownRoute` if one of the services `overlapping` has the same paths at another price.

    Only services that the caller may use are compared.
    """
    for key in overlapping:
        try:
            other = directory.resolve(caller, key)
        except ServiceNotIncluded:
            continue
        if other is not None and not service.costs_as(other):
            raise UnknownRoute(
                f"The services {service.key} and {key} share paths of an upstream at different prices: "
                "both are refused until each has paths of its own."
            )


def price_terms(calls: CallPorts, asked: UseRequest, service: Service, run: Run | None) -> AdmissionTerms:
    """Return the terms of a use of a `service` in its `run`; raise `ModelNotPriced` if a price is missing."""
    budgets, caller = None, asked.caller
    if service.id:
        budgets = calls.directory.budgets(caller, service.id, asked.attribution, asked.call, run=run)
    return AdmissionTerms(
        service, prices_of(calls, caller, service, asked.call, budgets, asked.kind.life_ms), budgets, run
    )


async def open_run(
    calls: CallPorts, asked: UseRequest, terms: AdmissionTerms, policies: CallRunPolicies
) -> AdmissionTerms:
    """Open or find the run of a checked use, and return the terms with it.

    If reserving the hold fails afterwards, the run soon expires.
    """
    named = asked.attribution.run
    assert named is not None
    run = await calls.runs.find(asked.caller, named, policies)
    return price_terms(calls, asked, terms.service, run)


async def check_line(
    ports: AdmissionPorts, asked: UseRequest, terms: AdmissionTerms, named: tuple[PriceMatch, ...]
) -> CallPrices | None:
    """Check a further line of an admitted batch; return its own prices, None if it costs what `named` are.

    Its objects are checked here, those of the first line included: they need not be asked for before its hold.
    """
    calls, caller, call = ports.calls, asked.caller, asked.call
    check_model_access(ports.models, calls.directory, asked.attribution, caller, call, asked.user)
    call.take_aim(aim_at(ports, asked, None))
    await check_objects(calls.objects, caller, call, named_objects(ports.models, asked.owned, caller, call))
    service, _, budgets, _ = terms
    asking, by_cost = money_budgets(budgets), service.pricing.at_cost is not None
    prices = None
    if call.body.tools or call.models_beside:
        prices = prices_of(calls, caller, service, call, budgets, asked.kind.life_ms)
    elif calls.refuse_unpriced or by_cost or asking is not None:
        know_reports(call, check_parts(call, named, asking, by_cost))
    return prices


def check_models(  # noqa: PLR0917  # as `check_model_access`
    ports: AdmissionPorts, attribution: Attribution, caller: Caller, user: str, call: CallRequest,
    service: Service, budgets: CallBudgets | None,
) -> CallPrices | None:  # fmt: skip
    """Check further models of an admitted use; return the prices of all, None if its `budgets` lack theirs."""
    check_model_access(ports.models, ports.calls.directory, attribution, caller, call, user)
    theirs = ports.calls.directory.budgets(caller, service.id, attribution, call) if service.id else None
    is_held = theirs is None or (budgets is not None and {*theirs.names}.issubset(budgets.names))
    prices = prices_of(ports.calls, caller, service, call, budgets if is_held else theirs)
    return prices if is_held else None


def consider(  # noqa: PLR0917  # as `check_model_access`
    calls: CallPorts, caller: Caller, attribution: Attribution, call: CallRequest, service: Service,
    run: Run | None = None, budgeted: bool = True,
) -> AdmissionTerms:  # fmt: skip
    """Return the terms of a use that nobody makes; raise `ModelNotPriced` if a price is missing."""
    budgets = None
    if service.id and budgeted:
        budgets = calls.directory.budgets(caller, service.id, attribution, call, False, run)
    return AdmissionTerms(service, prices_of(calls, caller, service, call, budgets), budgets, run)


async def check_listed(ports: AdmissionPorts, asked: UseRequest) -> None:
    """Check a use that takes from no limit and is not sent from here, as `admit` does."""
    find_terms(ports, asked)
    named = named_objects(ports.models, asked.owned, asked.caller, asked.call, asked.listed)
    await check_objects(ports.calls.objects, asked.caller, asked.call, named)
