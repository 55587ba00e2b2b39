"""The one admission of a use: whether it may begin, at which prices, and what it holds of each limit.

A use is a call, a turn of a socket, a hold of a caller, a job or a line of one. Its module reads it (`UseRequest`) and
knows how it came (`Entrance`) and, if it is no call, its claim (`OwnClaim`). docs/internals/request.md has the order of the checks. No
socket, no clock.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple, Protocol

from gateway.calls.aim import aim_at
from gateway.calls.claim import OPENING_MS, hold_request
from gateway.calls.permit import check_model_access, check_objects, named_objects, run_policies
from gateway.calls.ports import AdmissionPorts, CallPorts, DirectoryPort
from gateway.calls.prices import check_parts, money_budgets, prices_of
from gateway.core.accounts.budgets import MAXIMUM
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import ENDLESS_CALLS, Run, make_provisional
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import CallClaim
from gateway.core.calls.estimate import NO_ESTIMATE
from gateway.core.calls.tariff import NO_PRICES, CallPrices, PriceMatch, know_reports
from gateway.core.calls.use_request import UseRequest
from gateway.core.families.refusal import from_refused
from gateway.core.model import NO_SERVICE, Admitted, Attribution, Caller, HoldRequest, Refused, Service
from gateway.errors import Refusal, ServiceNotIncluded, UnknownRoute


class AdmissionTerms(NamedTuple):
    """What a use takes from and costs, as its admission found it; the same until it is charged."""

    service: Service
    prices: CallPrices
    budgets: CallBudgets | None
    run: Run | None  # None if it names none


class Admission(NamedTuple):
    """An admitted use: its terms, its claim of each limit, and the hold that was reserved for it.

    `binds`: the hold may be the limit of the use.
    """

    terms: AdmissionTerms
    claim: CallClaim
    request: HoldRequest
    admitted: Admitted
    binds: bool


class Entrance(Protocol):
    """The door that a use comes in by. `is_held`: a request and a slot are reserved, by its head alone."""

    is_held: bool

    def check_paused(self) -> None:
        """Raise a `Refusal` if the circuit breaker pauses every upstream that may be asked."""

    def hold_by_head(self) -> Awaitable[object]:
        """Reserve by the head, unless that is done: no run opens and nothing is told before."""

    def shield(self) -> None:
        """Stop interruptions until the use is admitted or refused."""


class OwnClaim(Protocol):
    """The claim of a use that does not hold the estimate of a call."""

    def claim(self, terms: AdmissionTerms) -> tuple[CallClaim, HoldRequest]:
        """Return the claim of the use on each limit, and the request that reserves it."""

    def enter(self) -> Awaitable[None] | None:
        """Count the use where there is a maximum of uses besides limits; None if nothing is counted."""


async def admit(
    ports: AdmissionPorts, asked: UseRequest, entrance: Entrance, own: OwnClaim | None = None
) -> Admission:
    """Admit a use: reserve its hold on every limit; raise the `Refusal` of the first check that it fails.

    It holds the estimate of its call, or its `own` claim. What fails before limits are asked is one of its
    caller's requests all the same.
    """
    call, binds = asked.call, False
    try:
        terms, opening = find_terms(ports, asked)
        named = named_objects(ports.models, asked.owned, asked.caller, call, asked.listed)
        if named or call.unsure:  # most calls name none, and make no coroutine
            await check_objects(ports.calls.objects, asked.caller, call, named)
        if ports.breaker.entries and asked.kind.is_called:
            entrance.check_paused()
        if own is not None:
            claim, request = own.claim(terms)
            if (entering := own.enter()) is not None:
                await entering
        if opening is not None:
            await entrance.hold_by_head()  # a caller that is over a limit opens none
            terms = await _open_run(ports.calls, asked, terms, opening)
            if own is not None:
                claim, request = own.claim(terms)
        if own is None:
            claim, request, binds = _claim(ports, asked, terms)
    except Refusal:
        await entrance.hold_by_head()
        raise
    request.raises = request.raises or entrance.is_held
    entrance.shield()
    answer = await ports.calls.counters.reserve(request)
    admitted = check_admitted(ports, asked.caller, terms.budgets, answer)
    if terms.run is not None:
        ports.calls.runs.admitted(asked.caller, terms.run)
    return Admission(terms, claim, request, admitted, binds)


def _claim(
    ports: AdmissionPorts, asked: UseRequest, terms: AdmissionTerms
) -> tuple[CallClaim, HoldRequest, bool]:
    """Return the claim of a call, the request for its hold, and whether that may be the limit of the call."""
    call, caller, estimator, binds = asked.call, asked.caller, ports.estimator, False
    service, prices, budgets, _ = terms
    estimate = NO_ESTIMATE
    if service.counts_tokens or prices.vectors or budgets is not None:
        binds = bool(prices.vectors) or caller.tenant_id not in estimator.unbound
        binds = binds or (budgets is not None and budgets.hold == MAXIMUM)
        estimate = estimator.hold(call, caller.organization_id, service.key, caller.key_id, binds=binds)
    claim, request = hold_request(
        caller, asked.id, asked.user, service, call, estimate, prices, budgets, asked.units, False,
        OPENING_MS if call.background else 0,
    )  # fmt: skip
    return claim, request, binds


def find_terms(ports: AdmissionPorts, asked: UseRequest) -> tuple[AdmissionTerms, CallRunPolicies | None]:
    """Return the terms of a use, and the policies by which its run is opened; None if it is cached or none.

    Its targets are set. Raise a `Refusal` if its key, models or prices do not allow it. If its run is not
    opened yet, the terms have what it will be.
    """
    calls, kind, caller, call = ports.calls, asked.kind, asked.caller, asked.call
    directory, named, run, opening = calls.directory, asked.attribution.run, None, None
    if not kind.is_free:
        policies = run_policies(directory, caller, named, kind.run_field)
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
    return _price_terms(calls, asked, service, run), opening


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


def _price_terms(calls: CallPorts, asked: UseRequest, service: Service, run: Run | None) -> AdmissionTerms:
    budgets, caller = None, asked.caller
    if service.id:
        budgets = calls.directory.budgets(caller, service.id, asked.attribution, asked.call, run=run)
    return AdmissionTerms(
        service, prices_of(calls, caller, service, asked.call, budgets, asked.kind.life_ms), budgets, run
    )


async def _open_run(
    calls: CallPorts, asked: UseRequest, terms: AdmissionTerms, policies: CallRunPolicies
) -> AdmissionTerms:
    """Open or find the run of a checked use, and return the terms with it.

    If reserving the hold fails afterwards, the run soon expires.
    """
    named = asked.attribution.run
    assert named is not None
    run = await calls.runs.find(asked.caller, named, policies)
    return _price_terms(calls, asked, terms.service, run)


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
    """Return the terms that a use would have, which is not made; raise `ModelNotPriced` if it would have none."""
    budgets = None
    if service.id and budgeted:
        budgets = calls.directory.budgets(caller, service.id, attribution, call, False, run)
    return AdmissionTerms(service, prices_of(calls, caller, service, call, budgets), budgets, run)


async def check_listed(ports: AdmissionPorts, asked: UseRequest) -> None:
    """Check a use that takes from no limit and is not sent from here, as `admit` does."""
    find_terms(ports, asked)
    named = named_objects(ports.models, asked.owned, asked.caller, asked.call, asked.listed)
    await check_objects(ports.calls.objects, asked.caller, asked.call, named)


def check_admitted(
    ports: AdmissionPorts, caller: Caller, budgets: CallBudgets | None, answer: Admitted | Refused
) -> Admitted:
    """Return an admission with its budget's name; raise the `Refusal` of an answer that refuses the use."""
    window = answer.budget
    if budgets is not None and window is not None:
        if isinstance(answer, Admitted) and window.limit == ENDLESS_CALLS:
            answer.budget = None  # this run has no limit
        else:
            budgets.name_in(window)
    if isinstance(answer, Admitted):
        if budgets is not None:
            for freed in answer.frees:
                freed.name = budgets.name_of(freed.budget_id)
        return answer
    refusal = from_refused(answer, lambda: ports.calls.directory.spent_answer(caller))
    budget = None if budgets is None or window is None else budgets.by_id.get(window.budget_id)
    if budget is not None:
        ports.budget_refused(refusal.reason, budget.unit, budget.interval or budget.window)
    raise refusal
