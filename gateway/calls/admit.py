"""The one admission of a use: whether it may begin, at which prices, and what it holds of each limit.

A use is a call, a turn of a socket, a hold of a caller, a job or a line of one. Its module reads it (`UseRequest`) and
knows how it came (`Entrance`) and, if it is no call, its claim (`OwnClaim`). docs/internals/request.md has the order of the checks. No
socket, no clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from gateway.calls.aim import aim_at
from gateway.calls.claim import OPENING_MS, hold_request
from gateway.calls.permit import check_model_access, check_objects, named_objects, run_policies
from gateway.calls.ports import AdmissionPorts, CallPorts, DirectoryPort
from gateway.calls.prices import check_parts, money_budgets, prices_of
from gateway.calls.steps import (
    explain_refusal,
    is_short,
    rule_of_route,
    why_bound,
    why_fixed,
    why_refused,
    why_unfit,
)
from gateway.core.accounts.budgets import MAXIMUM
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import ENDLESS_CALLS, Run, make_provisional
from gateway.core.accounts.steps import (
    STEP_JUDGES,
    STEP_REQUIRES,
    STEP_STOPS,
    STEP_TELLS,
    MatchedStep,
    ReachedKey,
    SessionModel,
    Substitution,
    Weighed,
    judged_by,
    matched_steps,
    substitutes_of,
    taken_step,
)
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import CallClaim, claim_of
from gateway.core.calls.estimate import NO_ESTIMATE
from gateway.core.calls.tariff import NO_PRICES, CallPrices, PriceMatch, know_reports
from gateway.core.calls.use_request import UseRequest
from gateway.core.families.refusal import from_refused
from gateway.core.model import (
    NO_SERVICE,
    Admitted,
    Attribution,
    Caller,
    HoldRequest,
    Refused,
    Service,
    Verdict,
)
from gateway.core.value import Value
from gateway.errors import InvalidRequest, Refusal, ServiceNotIncluded, UnknownRoute

# How often a use is judged whose substitute found no room: meanwhile others may have reached a further step.
JUDGED_TIMES: Final = 3
NO_STEPS: Final[tuple[MatchedStep, ...]] = ()


class AdmissionTerms(NamedTuple):
    """What a use takes from and costs, as its admission found it; the same until it is charged."""

    service: Service
    prices: CallPrices
    budgets: CallBudgets | None
    run: Run | None  # None if it names none


class Admission(NamedTuple):
    """An admitted use: its terms, its claim of each limit, and the hold that was reserved for it.

    `binds`: the hold may be the limit of the use. `call` is the one to send, which a step of a budget may have aimed
    at another model than its caller named: then `asked_prices` are those of that one.
    """

    terms: AdmissionTerms
    claim: CallClaim
    request: HoldRequest
    admitted: Admitted
    binds: bool
    call: CallRequest
    asked_prices: CallPrices | None = None


class PreparedUse(Value, frozen=True):
    """A use that may begin, with what it would hold; nothing is reserved yet."""

    asked: UseRequest
    terms: AdmissionTerms
    claim: CallClaim
    request: HoldRequest
    binds: bool


class StepReservation(Value, frozen=True):
    """A use with steps that is admitted, as it was asked or as a substitute.

    `binds_session`: new calls of its session go the same way. They do not where it went as asked because no substitute
    could be sent.
    """

    use: PreparedUse
    admitted: Admitted
    binds_session: bool


class Entrance(Protocol):
    """The door that a use comes in by. `is_held`: a request and a slot are reserved, by its head alone."""

    is_held: bool

    def check_paused(self, call: CallRequest) -> None:
        """Raise a `Refusal` if the circuit breaker pauses every upstream that a call may ask."""

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
        if named or call.objects.unsure:  # most calls name none, and make no coroutine
            await check_objects(ports.calls.objects, asked.caller, call, named)
        if ports.breaker.entries and asked.kind.is_called:
            entrance.check_paused(call)
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
    use, steps = PreparedUse(asked, terms, claim, request, binds), NO_STEPS
    if terms.budgets is not None and terms.budgets.steps and asked.kind.takes_steps and own is None:
        steps = matched_steps(terms.budgets.steps, call.spec.model)
    if steps:
        use, admitted = await _reserve_by_steps(ports, use, steps, entrance)
    else:
        answer = await ports.calls.counters.reserve(request)
        admitted = check_admitted(ports, asked.caller, terms.budgets, answer)
    if terms.run is not None:
        ports.calls.runs.admitted(asked.caller, terms.run)
    asked_prices = None if use.asked.call is call else terms.prices
    return Admission(use.terms, use.claim, use.request, admitted, use.binds, use.asked.call, asked_prices)


async def _reserve_by_steps(
    ports: AdmissionPorts, use: PreparedUse, steps: tuple[MatchedStep, ...], entrance: Entrance
) -> tuple[PreparedUse, Admitted]:
    """Reserve the hold of a use, or of the same as a substitute by one of its `steps`; return what is admitted.

    A session stays with what its first call went as while that fits, and what a substitute sealed in any case. A call
    that cannot be sent so is judged alone: it changes nothing for the others. Raise the `Refusal` of the use as it
    was asked, which says why it did not go as the substitute.
    """
    caller, call, sessions = use.asked.caller, use.asked.call, ports.calls.sessions
    attribution = use.asked.attribution
    session = "" if attribution.is_trace else attribution.session  # each call may have a trace of its own
    kept = await sessions.find(caller, session, call.spec.model) if session else None
    reservation: StepReservation | None = None
    alone = False
    if kept is not None and kept.model:
        sealed = why_bound(call)
        if sealed or not all(step.switches for step in steps):
            other = await _prepare_as_kept(ports, use, entrance, kept, sealed)
            alone = other is None
            if other is not None:
                reservation = await _reserve_as_kept(ports, use, steps, other, sealed)
    if reservation is None:
        stays = kept is not None and not kept.model
        reservation = await _reserve_or_substitute(ports, use, steps, entrance, stays=stays)
    if reservation.binds_session and not alone:
        by = reservation.use.asked.call.substitution
        kept = SessionModel()
        if by is not None:
            kept = SessionModel(reservation.use.asked.call.spec.model, by.budget_id, by.budget)
    if session and kept is not None:
        sessions.keep(caller, session, call.spec.model, kept)
    return reservation.use, reservation.admitted


async def _prepare_as_kept(
    ports: AdmissionPorts, use: PreparedUse, entrance: Entrance, kept: SessionModel, sealed: str
) -> PreparedUse | None:
    """Return a use as the model that its session is `kept` with; None if it cannot be sent so.

    Raise a `Refusal` instead where it is `sealed` (why, in words): no other model than this one could read it.
    """
    call, why = use.asked.call, why_fixed(use.asked.call)
    refusal: Refusal | None = None
    try:
        if not why:
            other = await _prepare_as(ports, use, kept.model, entrance)
            why = why_unfit(other.asked.call, call, other.terms.prices, use.terms.prices)
            if not why:
                return _substituted(other, call.spec.model, kept.budget_id, kept.budget)
    except Refusal as error:
        refusal = error
    if not sealed:
        return None
    await entrance.hold_by_head()  # as what fails before limits are asked
    refusal = refusal or InvalidRequest(f"The session goes as {kept.model}, and this call cannot: {why}.")
    explain_refusal(refusal, call.spec.model, sealed)
    raise refusal


async def _reserve_as_kept(
    ports: AdmissionPorts, use: PreparedUse, steps: tuple[MatchedStep, ...], other: PreparedUse, sealed: str
) -> StepReservation | None:
    """Reserve a use as the `other` one of its session's model; None if its steps are to be judged instead.

    They are where this model has no room any more, unless it `sealed` a part of the use: then nothing else fits. A
    step that switches, and is reached, goes before as well.
    """
    reserve, caller = ports.calls.counters.reserve, use.asked.caller
    if not sealed and any(step.switches for step in steps):
        use.request.steps = tuple([judged_by(step, STEP_JUDGES) for step in steps])
        answer = await reserve(use.request)
        use.request.steps = ()
        if isinstance(answer, Admitted):  # by a lease, which judges no step
            return StepReservation(use, check_admitted(ports, caller, use.terms.budgets, answer), False)
        reached = zip(steps, answer.reached, strict=False)
        if not answer.reached or any(step.switches and byte for step, byte in reached):
            return None
    answer = await reserve(other.request)
    if isinstance(answer, Refused) and is_short(answer) and not sealed:
        return None
    try:
        return StepReservation(other, check_admitted(ports, caller, other.terms.budgets, answer), True)
    except Refusal as refusal:
        if isinstance(answer, Refused) and is_short(answer):
            explain_refusal(refusal, use.asked.call.spec.model, sealed)
        raise


async def _reserve_or_substitute(
    ports: AdmissionPorts,
    use: PreparedUse,
    steps: tuple[MatchedStep, ...],
    entrance: Entrance,
    *,
    stays: bool,
) -> StepReservation:
    """Reserve a use as it was asked, or as the substitute of a reached step; one that `stays` minds steps that switch alone."""
    if not stays and (before := await _reserve_as_before(ports, use, steps, entrance)) is not None:
        return before
    reserve, request, caller = ports.calls.counters.reserve, use.request, use.asked.caller
    judged = tuple(
        [judged_by(step, STEP_TELLS if stays and not step.switches else STEP_STOPS) for step in steps]
    )
    name = why = tried = ""
    for _ in range(JUDGED_TIMES):
        request.steps = judged
        answer = await reserve(request)
        request.steps = ()
        if isinstance(answer, Admitted):
            return StepReservation(use, check_admitted(ports, caller, use.terms.budgets, answer), True)
        is_reached = answer.verdict is Verdict.STEP_REACHED
        if not (is_reached or is_short(answer)):
            break
        reached = steps
        if is_reached:
            reached = tuple([step for step, byte in zip(steps, answer.reached, strict=True) if byte])
            if reached == steps:
                ports.calls.reached.add(_reached_key(use, steps))
        other, name, unfit = await _weigh(ports, use, reached, entrance)
        if other is None or name == tried:
            why = unfit or why
            break
        second = await reserve(other.request)
        if isinstance(second, Admitted):
            return StepReservation(other, check_admitted(ports, caller, other.terms.budgets, second), True)
        why, tried = why_refused(second, other.terms.budgets), name
        if not is_short(second):
            break
    return StepReservation(use, await _reserve_as_asked(ports, use, answer, name, why), False)


async def _reserve_as_asked(
    ports: AdmissionPorts, use: PreparedUse, answer: Admitted | Refused, name: str, why: str
) -> Admitted:
    """Reserve a use as it was asked, unless the `answer` to it is a limit's; raise the `Refusal`, which says `why`.

    `name` is the substitute that it did not go as.
    """
    if answer.verdict is Verdict.STEP_REACHED:
        answer = await ports.calls.counters.reserve(use.request)
    try:
        return check_admitted(ports, use.asked.caller, use.terms.budgets, answer)
    except Refusal as refusal:
        if why and isinstance(answer, Refused) and is_short(answer):
            explain_refusal(refusal, name, why)
        raise


def _reached_key(use: PreparedUse, steps: tuple[MatchedStep, ...]) -> ReachedKey:
    return steps, use.request.names, use.asked.caller.organization_id


async def _reserve_as_before(
    ports: AdmissionPorts, use: PreparedUse, steps: tuple[MatchedStep, ...], entrance: Entrance
) -> StepReservation | None:
    """Reserve a use as a substitute at once, if all `steps` of such uses were reached a moment ago; else return None.

    It is admitted only where they are all reached still, by the same script call: then each of them counts, whether the
    use as asked would fit or not.
    """
    reached, key = ports.calls.reached, _reached_key(use, steps)
    if key not in reached:
        return None
    other, _, _ = await _weigh(ports, use, steps, entrance)
    budgets = None if other is None else other.terms.budgets
    if other is None or budgets is None or {step.budget_id for step in steps}.difference(dict(budgets.steps)):
        return None  # its own budgets do not tell
    other.request.steps = tuple([judged_by(step, STEP_REQUIRES) for step in steps])
    answer = await ports.calls.counters.reserve(other.request)
    other.request.steps = ()
    if isinstance(answer, Admitted):
        return StepReservation(other, check_admitted(ports, use.asked.caller, budgets, answer), True)
    reached.discard(key)
    return None


async def _weigh(
    ports: AdmissionPorts, use: PreparedUse, reached: Sequence[MatchedStep], entrance: Entrance
) -> tuple[PreparedUse | None, str, str]:
    """Return the use as the substitute that would hold least, of those that may go; its name; and why none may go."""
    names, why = substitutes_of(reached), why_fixed(use.asked.call) or why_bound(use.asked.call)
    if why:
        return None, names[0], why
    budgets = use.terms.budgets
    assert budgets is not None
    prepared, reasons, weighed = dict[str, PreparedUse](), dict[str, str](), list[Weighed]()
    weights = dict[str, tuple[int, ...]]()
    for name in names:
        try:
            other = await _prepare_as(ports, use, name, entrance)
            reasons[name] = why_unfit(other.asked.call, use.asked.call, other.terms.prices, use.terms.prices)
        except Refusal as refusal:
            reasons[name] = refusal.message
        if not reasons.get(name):
            prepared[name] = other
            weights[name] = _weight_of(other, budgets)
    for step in reached:
        if step.substitute in weights:
            weighed.append(Weighed(step, weights[step.substitute]))
    taken = taken_step(weighed)
    if taken is None:
        return None, names[0], reasons[names[0]]
    name = budgets.by_id[taken.budget_id].name
    other = _substituted(prepared[taken.substitute], use.asked.call.spec.model, taken.budget_id, name)
    return other, taken.substitute, ""


def _substituted(use: PreparedUse, model_asked: str, budget_id: int, budget: str) -> PreparedUse:
    """Return a use whose call says which model was asked for, and which budget's step sends it as another."""
    call = use.asked.call
    call = replace(call, aim=call.aim._replace(substitution=Substitution(model_asked, budget_id, budget)))
    return use._replace(asked=use.asked._replace(call=call))


def _weight_of(use: PreparedUse, budgets: CallBudgets) -> tuple[int, ...]:
    """Return what a use would hold, for comparison: money, then credits, then tokens.

    Where no budget of money counts it, that is what the `budgets` of the use as asked would hold.
    """
    request, claim, prices, money = use.request, use.claim, use.terms.prices, use.request.money
    if not money and (vectors := prices.in_currency(budgets.currency)):
        counted = claim_of(
            use.asked.call,
            use.terms.service,
            prices.vectors,
            claim.estimate,
            request.units,
            vectors,
            budgets.hold,
        )
        money = 0 if counted.budget is None else counted.budget.money
    return money, claim.credits, request.budget_tokens, request.need


async def _prepare_as(ports: AdmissionPorts, use: PreparedUse, name: str, entrance: Entrance) -> PreparedUse:
    """Return a use as its caller would have made it with the model `name`; raise the `Refusal` that this would have met."""
    caller, before = use.asked.caller, use.asked.call
    call = replace(before, spec=before.spec._replace(model=name))
    asked = use.asked._replace(call=call)
    rule = check_model_access(
        ports.models, ports.calls.directory, asked.attribution, caller, call, asked.user, asked.without_model,
        asked.kind.user_field,
    )  # fmt: skip
    call.take_aim(aim_at(ports, asked, rule or rule_of_route(asked)))
    terms = _price_terms(ports.calls, asked, use.terms.service, use.terms.run)
    if (
        named := named_objects(ports.models, asked.owned, caller, call, asked.listed)
    ) != before.objects.named:
        await check_objects(ports.calls.objects, caller, call, named)
    if ports.breaker.entries:
        entrance.check_paused(call)
    claim, request, binds = _claim(ports, asked, terms)
    request.raises = use.request.raises
    return PreparedUse(asked, terms, claim, request, binds)


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
        OPENING_MS if call.spec.background else 0,
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
