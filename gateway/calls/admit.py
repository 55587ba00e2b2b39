"""The one admission of a use: whether it may begin, at which prices, and what it holds of each limit.

A use is a call, a turn of a socket, a hold of a caller, a job or a line of one. Its module reads it (`Use`) and
has what belongs to its kind alone (`Entrance`). docs/internals/request.md has the order of the checks. No
socket, no clock.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, NamedTuple, Protocol

from gateway.calls.aim import aim_at, know_upstreams
from gateway.calls.permit import check_objects, judge, named_objects, run_policies
from gateway.calls.ports import AdmissionPorts, CallPorts
from gateway.calls.prices import (
    CALL_LIFE_MS,
    check_overlapping,
    check_parts,
    money_budgets,
    prices_of,
)
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import ENDLESS_CALLS, FIELD, Run, make_provisional
from gateway.core.accounts.upstream_jobs import HOLD_MS_MAX
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import CallClaim
from gateway.core.calls.models import named_by
from gateway.core.calls.tariff import NO_PRICES, CallPrices, PriceMatch, know_reports
from gateway.core.families.objects import ObjectAccess
from gateway.core.families.refusal import from_refused
from gateway.core.model import NO_SERVICE, Admitted, Attribution, Caller, HoldRequest, Refused, Service
from gateway.errors import Refusal, ServiceNotIncluded


class KindOfUse(NamedTuple):
    """What differs on purpose between kinds of use.

    Where a key requires a user, `user_field` is the field that names it; where a policy requires a run,
    `run_field`. `life_ms` is how long a hold may last. `is_aimed`: it goes to a target of its model.
    `is_sent`: it is written for its targets, which must speak its API. `is_free`: it takes from no limit but
    requests, so that it needs neither user nor run.
    """

    user_field: str = "x-tollkeeper-user"
    run_field: str = FIELD
    life_ms: int = CALL_LIFE_MS
    is_aimed: bool = True
    is_sent: bool = True
    is_free: bool = False


CALL: Final = KindOfUse()
FREE_CALL: Final = KindOfUse("", is_free=True)
HOLD: Final = KindOfUse("user", "run", is_sent=False)  # its caller sends it
LINE: Final = KindOfUse(life_ms=HOLD_MS_MAX, is_aimed=False, is_sent=False)  # all are sent to one upstream


class Use:
    """A use as it is asked for. Nothing changes it.

    `service_key` is its service, empty on a route that charges nothing. `upstream` is the one that its route
    names. `owned` says how its API keeps objects, `listed` is a model that the path of a list names. Its
    service may share paths with those of `overlapping`. If a list allows some models alone, a use that names
    none is refused with the words `without_model`, empty if it passes. A use that is sent `once` has no
    second target.
    """

    __slots__ = (
        "attribution", "call", "caller", "kind", "listed", "once", "overlapping", "owned", "service_key",
        "upstream", "user", "without_model",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917  # what is asked by whom
        self, kind: KindOfUse, caller: Caller, attribution: Attribution, call: CallRequest, service_key: str,
        upstream: str, owned: ObjectAccess | None = None, without_model: str = "",
        overlapping: tuple[str, ...] = (), listed: str = "", once: bool = False,
    ) -> None:  # fmt: skip
        self.kind: Final = kind
        self.caller: Final = caller
        self.attribution: Final = attribution
        self.call: Final = call
        self.user: Final = caller.acts_for(attribution.user, call.user)
        self.service_key: Final = service_key
        self.upstream: Final = upstream
        self.owned: Final = owned
        self.without_model: Final = without_model
        self.overlapping: Final = overlapping
        self.listed: Final = listed
        self.once: Final = once


class Terms(NamedTuple):
    """What a use takes from and costs, as its admission found it; the same until it is charged."""

    service: Service
    prices: CallPrices
    budgets: CallBudgets | None
    run: Run | None  # None if it names none


class Admission(NamedTuple):
    """An admitted use: its terms, its claim of each limit, and the hold that was reserved for it."""

    terms: Terms
    claim: CallClaim
    request: HoldRequest
    admitted: Admitted


class Entrance(Protocol):
    """The door that a use comes in by, with what belongs to its kind alone."""

    def check_target(self) -> None:
        """Take note of where the use goes; raise a `Refusal` if nobody may be asked there now."""

    def claim(self, terms: Terms) -> tuple[CallClaim, HoldRequest]:
        """Return the claim of the use on each limit, and the request that reserves it."""

    def enter(self) -> Awaitable[None] | None:
        """Count the use where there is a maximum of uses besides limits; None if nothing is counted."""

    def hold_by_head(self) -> Awaitable[object]:
        """Reserve a request and a slot, unless they are reserved: no run opens and nothing is told before."""

    def reserve(self, request: HoldRequest) -> Awaitable[Admitted | Refused]:
        """Reserve a hold on every limit or on none. Nothing interrupts it."""


async def admit(ports: AdmissionPorts, use: Use, entrance: Entrance) -> Admission:
    """Admit a use: reserve its hold on every limit; raise the `Refusal` of the first check that it fails.

    What fails before limits are asked is one of its caller's requests all the same.
    """
    call = use.call
    try:
        terms, opening = find_terms(ports, use)
        named = named_objects(ports.models, use.owned, use.caller, call, use.listed)
        if named or call.unsure:  # most calls name none, and make no coroutine
            await check_objects(ports.calls.objects, use.caller, call, named)
        entrance.check_target()
        claim, request = entrance.claim(terms)
        entering = entrance.enter()
        if entering is not None:
            await entering
        if opening is not None:
            await entrance.hold_by_head()  # a caller that is over a limit opens none
            terms = await _open_run(ports.calls, use, terms, opening)
            claim, request = entrance.claim(terms)
    except Refusal:
        await entrance.hold_by_head()
        raise
    admitted = check_admitted(ports, use.caller, terms.budgets, await entrance.reserve(request))
    if terms.run is not None:
        ports.calls.runs.admitted(use.caller, terms.run)
    return Admission(terms, claim, request, admitted)


def find_terms(ports: AdmissionPorts, use: Use) -> tuple[Terms, CallRunPolicies | None]:
    """Return the terms of a use, and the policies by which its run is opened; None if it is cached or none.

    Its targets are set. Raise a `Refusal` if its key, models or prices do not allow it. If its run is not
    opened yet, the terms have what it will be.
    """
    calls, kind, caller, call = ports.calls, use.kind, use.caller, use.call
    directory, asked, run, opening = calls.directory, use.attribution.run, None, None
    if not kind.is_free:
        policies = run_policies(directory, caller, asked, kind.run_field)
        if asked is not None:
            run = calls.runs.cached(caller, asked)
            if run is None:
                run, opening = make_provisional(caller, asked, policies), policies
    rule = judge(
        ports.models, directory, use.attribution, caller, call, use.user, use.without_model, kind.user_field
    )
    if rule is not None and kind.is_aimed:
        if kind.is_sent:
            aim_at(ports, call, rule, use.once)
        else:
            call.targets = named_by(rule, call.model)
    if kind.is_free:
        prices = prices_of(calls, caller, NO_SERVICE, call, None) if use.service_key else NO_PRICES
        return Terms(NO_SERVICE, prices, None, None), None
    if kind.is_sent and not call.targets:
        call.upstream = use.upstream
    if kind.is_sent or use.upstream:
        know_upstreams(ports, call, rule, use.upstream)
    service = directory.resolve(caller, use.service_key)
    if service is None:
        raise ServiceNotIncluded
    if use.overlapping:
        check_overlapping(directory, caller, service, use.overlapping)
    return _priced(calls, use, service, run), opening


def _priced(calls: CallPorts, use: Use, service: Service, run: Run | None) -> Terms:
    budgets, caller = None, use.caller
    if service.id:
        budgets = calls.directory.budgets(caller, service.id, use.attribution, use.call, run=run)
    return Terms(
        service, prices_of(calls, caller, service, use.call, budgets, use.kind.life_ms), budgets, run
    )


async def _open_run(calls: CallPorts, use: Use, terms: Terms, policies: CallRunPolicies) -> Terms:
    """Open or find the run of a checked use, and return the terms with it.

    If reserving the hold fails afterwards, the run soon expires.
    """
    asked = use.attribution.run
    assert asked is not None
    return _priced(calls, use, terms.service, await calls.runs.find(use.caller, asked, policies))


async def check_line(
    ports: AdmissionPorts, use: Use, terms: Terms, named: tuple[PriceMatch, ...]
) -> CallPrices | None:
    """Check a further line of an admitted batch; return its own prices, None if it costs what `named` are.

    Its objects are checked here, those of the first line included: they need not be asked for before its hold.
    """
    calls, caller, call = ports.calls, use.caller, use.call
    judge(ports.models, calls.directory, use.attribution, caller, call, use.user)
    await check_objects(calls.objects, caller, call, named_objects(ports.models, use.owned, caller, call))
    service, _, budgets, _ = terms
    asking, by_cost = money_budgets(budgets), service.pricing.at_cost is not None
    prices = None
    if call.tools or call.models_beside:
        prices = prices_of(calls, caller, service, call, budgets, use.kind.life_ms)
    elif calls.refuse_unpriced or by_cost or asking is not None:
        know_reports(call, check_parts(call, named, asking, by_cost))
    know_upstreams(ports, call, None, use.upstream)
    return prices


def check_models(  # noqa: PLR0917  # as `judge`
    ports: AdmissionPorts, attribution: Attribution, caller: Caller, user: str, call: CallRequest,
    service: Service, budgets: CallBudgets | None,
) -> CallPrices:  # fmt: skip
    """Check further models of an admitted use; return the prices of all its models."""
    judge(ports.models, ports.calls.directory, attribution, caller, call, user)
    return prices_of(ports.calls, caller, service, call, budgets)


def consider(  # noqa: PLR0917  # as `judge`
    calls: CallPorts, caller: Caller, said: Attribution, call: CallRequest, service: Service,
    run: Run | None = None, budgeted: bool = True,
) -> Terms:  # fmt: skip
    """Return the terms that a use would have, which is not made; raise `ModelNotPriced` if it would have none."""
    budgets = None
    if service.id and budgeted:
        budgets = calls.directory.budgets(caller, service.id, said, call, False, run)
    return Terms(service, prices_of(calls, caller, service, call, budgets), budgets, run)


async def check_listed(ports: AdmissionPorts, use: Use) -> None:
    """Check a use that takes from no limit and is not sent from here, as `admit` does."""
    find_terms(ports, use)
    named = named_objects(ports.models, use.owned, use.caller, use.call, use.listed)
    await check_objects(ports.calls.objects, use.caller, use.call, named)


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
        return answer
    refusal = from_refused(answer, lambda: ports.calls.directory.spent_answer(caller))
    budget = None if budgets is None or window is None else budgets.by_id.get(window.budget_id)
    if budget is not None:
        ports.budget_refused(refusal.reason, budget.unit, budget.interval)
    raise refusal
