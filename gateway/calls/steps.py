"""Whether a call may go as another model, where little of its budgets is left, and why not.

How it works, from one call's point of view. Its budgets have steps that match the name that its caller said; most
calls match none, and are admitted as ever. Else the one script call that reserves its hold gets these steps too,
and judges in the same moment: as asked, it is admitted where it fits and no step is reached. A step that is reached
is an answer of its own, a budget that lacks room is a refusal, and either changes nothing. Then the call is aimed
again: at each reached step's substitute, as if its caller had named that. Of those that may go, the one that would
hold least is reserved, in all budgets of the substitute, at its prices, without steps. So no call passes without a
hold that fitted when it was taken, however many come at one instant. Where none may go, the call is reserved as
asked, without steps. `gateway/core/accounts/steps.py` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final

from gateway.calls.aim import aim_at
from gateway.calls.answers import check_admitted, explain_refusal, is_short, why_refused
from gateway.calls.claim import Entrance, PreparedUse, prepare
from gateway.calls.permit import check_model_access, check_objects, named_objects
from gateway.calls.ports import AdmissionPorts
from gateway.calls.terms import AdmissionTerms, price_terms
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.steps import (
    STEP_JUDGES,
    STEP_REQUIRES,
    STEP_STOPS,
    MatchedStep,
    ReachedKey,
    SessionModel,
    StepOwner,
    Substitution,
    Weighed,
    judged_by,
    substitutes_of,
    taken_step,
)
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import claim_of
from gateway.core.calls.estimate import model_bounds
from gateway.core.calls.routes import ModelRule, ModelTarget
from gateway.core.calls.tariff import CallPrices
from gateway.core.calls.use_request import UseRequest
from gateway.core.families.model_differences import refused_part
from gateway.core.families.registry import FAMILIES, SHAPES
from gateway.core.families.seals import bound_by
from gateway.core.model import Admitted, Attribution, Caller, Refused, Verdict
from gateway.core.value import Value
from gateway.errors import InvalidRequest, Refusal

BEGIN_ANEW: Final = "begin a new session"
# How often a use is judged whose substitute found no room: meanwhile others may have reached a further step.
JUDGED_TIMES: Final = 3


class StepReservation(Value, frozen=True):
    """A use with steps that is admitted, as it was asked or as a substitute.

    `binds_session`: new calls of its session go the same way. They do not where it went as asked because no substitute
    could be sent. `is_sealed`: only the substitute can read it.
    """

    use: PreparedUse
    admitted: Admitted
    binds_session: bool
    is_sealed: bool = False


class _SteppedUse:
    """A use with steps. What it would hold as asked is computed once it is needed: most substitutes are held without.

    What binds it to its model is computed once too, as a large body takes long to search.
    """

    __slots__ = ("_as_asked", "_bound", "_ports", "asked", "entrance", "terms")

    def __init__(
        self, ports: AdmissionPorts, asked: UseRequest, entrance: Entrance, terms: AdmissionTerms
    ) -> None:
        self._ports, self.asked, self.entrance, self.terms = ports, asked, entrance, terms
        self._as_asked: PreparedUse | None = None
        self._bound: str | None = None

    def why_bound(self) -> str:
        """Return why only the model that made what its call carries can read it; empty if others can too."""
        if self._bound is None:
            call = self.asked.call
            bound = bound_by(call, FAMILIES[call.family].seals)
            self._bound = f"{bound}: {BEGIN_ANEW}" if bound else ""
        return self._bound

    def prepare_as_asked(self) -> PreparedUse:
        """Return the use as its caller asked for it."""
        use = self._as_asked
        if use is None:
            use = self._as_asked = prepare(self._ports, self.asked, self.entrance, self.terms)
            use.request.raises = self.entrance.is_held
        return use


def reserve_by_steps(
    ports: AdmissionPorts, asked: UseRequest, entrance: Entrance, terms: AdmissionTerms,
    steps: tuple[MatchedStep, ...],
) -> Awaitable[StepReservation]:  # fmt: skip
    """Reserve the hold of a use, or of the same as a substitute by one of its `steps`.

    Raise the `Refusal` of the use as it was asked, which says why it did not go as the substitute.
    """
    use, attribution = _SteppedUse(ports, asked, entrance, terms), asked.attribution
    if not attribution.session or attribution.is_trace:  # each call may have a trace of its own
        return _reserve_or_substitute(ports, use, steps, stays=False)
    return _reserve_in_session(ports, use, steps, attribution.session)


async def _reserve_in_session(
    ports: AdmissionPorts, use: _SteppedUse, steps: tuple[MatchedStep, ...], session: str
) -> StepReservation:
    """Reserve a use of a `session`.

    It stays with what the session's first call went as while that fits, and what a substitute sealed in any case. A
    call that cannot be sent so is judged alone: it changes nothing for the others.
    """
    caller, call, sessions = use.asked.caller, use.asked.call, ports.calls.sessions
    kept = await sessions.find(caller, session, call.spec.model)
    reservation: StepReservation | None = None
    alone = False
    if kept is not None and kept.model:
        sealed = use.why_bound()
        if sealed or not all(step.switches for step in steps):
            other = await _prepare_as_kept(ports, use, kept, sealed)
            alone = other is None
            if other is not None:
                reservation = await _reserve_as_kept(ports, use, steps, other, sealed)
    if reservation is None:
        stays = kept is not None and not kept.model
        reservation = await _reserve_or_substitute(ports, use, steps, stays=stays)
    if reservation.binds_session and not alone:
        by = reservation.use.asked.call.substitution
        kept = SessionModel()
        if by is not None:
            kept = SessionModel(reservation.use.asked.call.spec.model, by.budget_id, by.budget)
    if kept is not None:
        sessions.keep(caller, session, call.spec.model, kept)
    return reservation


async def _prepare_as_kept(
    ports: AdmissionPorts, use: _SteppedUse, kept: SessionModel, sealed: str
) -> PreparedUse | None:
    """Return a use as the model that its session is `kept` with; None if it cannot be sent so.

    Raise a `Refusal` instead where it is `sealed` (why, in words): no other model than this one could read it.
    """
    call, why = (
        use.asked.call,
        why_fixed(use.asked) or _why_refused_before(ports, use, kept.budget_id, kept.model),
    )
    refusal: Refusal | None = None
    try:
        if not why:
            other = await _prepare_as(ports, use, kept.model)
            why = why_unfit(other.asked, call, other.terms.prices, use.terms.prices)
            if not why:
                return _substituted(other, call.spec.model, kept.budget_id, kept.budget)
    except Refusal as error:
        refusal = error
    if not sealed:
        return None
    await use.entrance.hold_by_head()  # as what fails before limits are asked
    refusal = refusal or InvalidRequest(f"The session goes as {kept.model}, and this call cannot: {why}.")
    explain_refusal(refusal, call.spec.model, sealed)
    raise refusal


async def _reserve_as_kept(
    ports: AdmissionPorts, use: _SteppedUse, steps: tuple[MatchedStep, ...], other: PreparedUse, sealed: str
) -> StepReservation | None:
    """Reserve a use as the `other` one of its session's model; None if its steps are to be judged instead.

    The steps are judged where this model has no room any more, unless it `sealed` a part of the use: then nothing
    else fits. A reached step that switches sessions is judged first as well.
    """
    reserve, caller = ports.calls.counters.reserve, use.asked.caller
    if not sealed and any(step.switches for step in steps):
        as_asked = use.prepare_as_asked()
        as_asked.request.steps = judged_by(steps, STEP_JUDGES)
        answer = await reserve(as_asked.request)
        as_asked.request.steps = ()
        if isinstance(answer, Admitted):  # by a lease, which judges no step
            return StepReservation(as_asked, check_admitted(ports, caller, use.terms.budgets, answer), False)
        reached = zip(steps, answer.reached, strict=False)
        if not answer.reached or any(step.switches and byte for step, byte in reached):
            return None
    answer = await reserve(other.request)
    if isinstance(answer, Refused) and is_short(answer) and not sealed:
        return None
    try:
        admitted = check_admitted(ports, caller, other.terms.budgets, answer)
        return StepReservation(other, admitted, True, bool(sealed))
    except Refusal as refusal:
        if isinstance(answer, Refused) and is_short(answer):
            explain_refusal(refusal, use.asked.call.spec.model, sealed)
        raise


async def _reserve_or_substitute(
    ports: AdmissionPorts, use: _SteppedUse, steps: tuple[MatchedStep, ...], *, stays: bool
) -> StepReservation:
    """Reserve a use as it was asked, or as the substitute of a reached step.

    A use that `stays` with its model is substituted by steps that switch sessions alone.
    """
    reached_key = _reached_key(use, steps)
    if not stays and reached_key in ports.calls.reached:
        before = await _reserve_as_before(ports, use, steps, reached_key)
        if before is not None:
            return before
    reserve, as_asked, caller = ports.calls.counters.reserve, use.prepare_as_asked(), use.asked.caller
    request, judged = as_asked.request, judged_by(steps, STEP_STOPS, stays)
    name = why = tried = ""
    for _ in range(JUDGED_TIMES):
        request.steps = judged
        answer = await reserve(request)
        request.steps = ()
        if isinstance(answer, Admitted):
            return StepReservation(as_asked, check_admitted(ports, caller, use.terms.budgets, answer), True)
        is_reached = answer.verdict is Verdict.STEP_REACHED
        if not (is_reached or is_short(answer)):
            break
        reached = steps
        if is_reached:
            reached = tuple([step for step, byte in zip(steps, answer.reached, strict=True) if byte])
            if reached == steps:
                ports.calls.reached.add(reached_key)
        other, name, unfit = await _weigh(ports, use, reached)
        if other is None or name == tried:
            why = unfit or why
            break
        second = await reserve(other.request)
        if isinstance(second, Admitted):
            return StepReservation(other, check_admitted(ports, caller, other.terms.budgets, second), True)
        why, tried = why_refused(second, other.terms.budgets), name
        if not is_short(second):
            break
    return StepReservation(as_asked, await _reserve_as_asked(ports, use, answer, name, why), False)


async def _reserve_as_asked(
    ports: AdmissionPorts, use: _SteppedUse, answer: Admitted | Refused, name: str, why: str
) -> Admitted:
    """Reserve a use as it was asked, unless the `answer` to it is a limit's; raise the `Refusal`, which says `why`.

    `name` is the substitute that it did not go as.
    """
    if answer.verdict is Verdict.STEP_REACHED:
        answer = await ports.calls.counters.reserve(use.prepare_as_asked().request)
    try:
        return check_admitted(ports, use.asked.caller, use.terms.budgets, answer)
    except Refusal as refusal:
        if why and isinstance(answer, Refused) and is_short(answer):
            explain_refusal(refusal, name, why)
        raise


def _reached_key(use: _SteppedUse, steps: tuple[MatchedStep, ...]) -> ReachedKey:
    budgets = use.terms.budgets
    assert budgets is not None
    return steps, budgets.names, use.asked.caller.organization_id


async def _reserve_as_before(
    ports: AdmissionPorts, use: _SteppedUse, steps: tuple[MatchedStep, ...], reached_key: ReachedKey
) -> StepReservation | None:
    """Reserve a use, all of whose `steps` were reached a moment ago, as a substitute at once; else return None.

    It is admitted only where they are all reached still, by the same script call: then each of them counts, whether the
    use as asked would fit or not.
    """
    other, _, _ = await _weigh(ports, use, steps)
    budgets = None if other is None else other.terms.budgets
    if other is None or budgets is None or {step.budget_id for step in steps}.difference(dict(budgets.steps)):
        return None  # its own budgets do not tell
    other.request.steps = judged_by(steps, STEP_REQUIRES)
    answer = await ports.calls.counters.reserve(other.request)
    other.request.steps = ()
    if isinstance(answer, Admitted):
        return StepReservation(other, check_admitted(ports, use.asked.caller, budgets, answer), True)
    ports.calls.reached.discard(reached_key)
    return None


async def _weigh(
    ports: AdmissionPorts, use: _SteppedUse, reached: Sequence[MatchedStep]
) -> tuple[PreparedUse | None, str, str]:
    """Return the use as the substitute that would hold least, of those that may go; its name; and why none may go."""
    if ports.calls.refused:
        before = [_why_refused_before(ports, use, step.budget_id, step.substitute) for step in reached]
        if all(before):
            return None, reached[0].substitute, before[0]
        reached = [step for step, why in zip(reached, before, strict=True) if not why]
    names, why = substitutes_of(reached), why_fixed(use.asked) or use.why_bound()
    if why:
        return None, names[0], why
    budgets = use.terms.budgets
    assert budgets is not None
    prepared, reasons = dict[str, PreparedUse](), dict[str, str]()
    for name in names:
        try:
            other = await _prepare_as(ports, use, name)
            reasons[name] = why_unfit(other.asked, use.asked.call, other.terms.prices, use.terms.prices)
        except Refusal as refusal:
            reasons[name] = refusal.message
        if not reasons.get(name):
            prepared[name] = other
    if not prepared:
        return None, names[0], reasons[names[0]]
    taken: MatchedStep | None = reached[0]  # the order of steps decides between those of one substitute
    if len(names) > 1:
        weights = {name: _weight_of(other, budgets) for name, other in prepared.items()}
        taken = taken_step(
            [Weighed(step, weights[step.substitute]) for step in reached if step.substitute in weights]
        )
    assert taken is not None
    name = budgets.by_id[taken.budget_id].name
    other = _substituted(prepared[taken.substitute], use.asked.call.spec.model, taken.budget_id, name)
    return other, taken.substitute, ""


def step_owner(caller: Caller, attribution: Attribution) -> StepOwner:
    """Return the owner of the calls that go as asked once a substitute refused one: its session, else its key."""
    session = "" if attribution.is_trace else attribution.session
    return caller.tenant_id, session, 0 if session else caller.key_id


def _why_refused_before(ports: AdmissionPorts, use: _SteppedUse, budget_id: int, substitute: str) -> str:
    """Return why a use does not go as a substitute whose API refused such a call before; empty if it may."""
    now_ms = ports.calls.refusals.now_ms()
    owner = step_owner(use.asked.caller, use.asked.attribution)
    part = ports.calls.refused.find(owner, budget_id, substitute, now_ms)
    if part is None or not part.is_in(use.asked.call.body.document):
        return ""
    return f"it refused such a call ({', '.join(filter(None, part)) or 'without a code'})"


def _substituted(use: PreparedUse, model_asked: str, budget_id: int, budget: str) -> PreparedUse:
    """Return a prepared use whose call now says which model was asked for, and which budget's step sends it as another."""
    use.asked.call.note_substitution(Substitution(model_asked, budget_id, budget))
    return use


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


async def _prepare_as(ports: AdmissionPorts, use: _SteppedUse, name: str) -> PreparedUse:
    """Return a use as its caller would have made it with the model `name`; raise the `Refusal` that this would have met."""
    caller, before = use.asked.caller, use.asked.call
    call = before.as_model(name)
    asked = use.asked._replace(call=call)
    rule = check_model_access(
        ports.models, ports.calls.directory, asked.attribution, caller, call, asked.user, asked.without_model,
        asked.kind.user_field,
    )  # fmt: skip
    call.take_aim(aim_at(ports, asked, rule or rule_of_route(asked)))
    terms = price_terms(ports.calls, asked, use.terms.service, use.terms.run)
    named = named_objects(ports.models, asked.owned, caller, call, asked.listed)
    if named != before.objects.named:
        await check_objects(ports.calls.objects, caller, call, named)
    if ports.breaker.entries:
        use.entrance.check_paused(call)
    other = prepare(ports, asked, use.entrance, terms)
    other.request.raises = use.entrance.is_held
    return other


def rule_of_route(asked: UseRequest) -> ModelRule:
    """Return a rule for a model that none is configured for: it goes to the upstream of its route by its name."""
    model = asked.call.spec.model
    return ModelRule(model, False, (ModelTarget(asked.upstream, model),))


def why_fixed(asked: UseRequest) -> str:
    """Return why the model of a call cannot be another one in its place; empty if it can."""
    call, shape = asked.call, SHAPES.get(asked.call.meter)
    if call.models_beside:
        return "the call names other models too"
    if shape is not None and (shape.stores or shape.lasts):
        return "it makes what one model keeps"
    if call.body.document is None and call.body.model_at is None:
        return "its body is sent as it comes"
    is_named = asked.by_path or call.body.has_place_of(call.spec.model)
    return "" if is_named else "its model is named where it cannot be replaced"


def why_unfit(asked: UseRequest, before: CallRequest, prices: CallPrices, asked_prices: CallPrices) -> str:
    """Return why the call of a use cannot be sent as it is aimed, as another model than `before`; empty if it can."""
    call = asked.call
    models = tuple([target.model for target in call.aim.targets]) or (call.spec.model,)
    if any(price.vector is None for price in prices.named) and any(
        price.vector is not None for price in asked_prices.named
    ):
        return "it has no price"
    part = refused_part(FAMILIES[call.family].differences, call, before.spec.model, models, asked.passed)
    if part:
        return f"it does not take {part}"
    output = before.said.output_max
    for number, model in enumerate(models):
        output_max, context = model_bounds(model)
        if call.aim.facts:
            facts = call.aim.facts[number]
            output_max, context = facts.output_max or output_max, facts.context or context
        if output is not None and output_max and output > output_max:
            return f"it answers with at most {output_max} tokens"
        if context and call.input_estimate + (output or 1) > context:
            return f"it reads at most {context} tokens"
    return ""
