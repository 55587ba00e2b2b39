"""Whether a call may go as another model, where little of its budgets is left, and why not.

How it works, from one call's point of view. Its budgets have steps that match the name that its caller said; most
calls match none, and are admitted as ever. Else the one script call that reserves its hold gets these steps too,
and judges in the same moment: as asked, it is admitted where it fits and no step is reached. A step that is reached
is an answer of its own, a budget that lacks room is a refusal, and either changes nothing. Then the call is aimed
again: at each reached step's substitute, as if its caller had named that. Of those that may go, the one that would
hold least is reserved, in all budgets of the substitute, at its prices, without steps. So no call passes without a
hold that fitted when it was taken, however many come at one instant. Where none may go, the call is reserved as
asked, without steps. `gateway/core/accounts/steps.py` has the arithmetic, `gateway/calls/admit.py` the order.
"""

from __future__ import annotations

from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.spent_answers import is_read_as_status
from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import model_bounds
from gateway.core.calls.routes import ModelRule, ModelTarget
from gateway.core.calls.tariff import CallPrices
from gateway.core.calls.use_request import UseRequest
from gateway.core.families.model_differences import refused_part
from gateway.core.families.refusal import from_refused
from gateway.core.families.registry import FAMILIES, SHAPES
from gateway.core.families.seals import bound_by
from gateway.core.model import Refused, Scope, Verdict
from gateway.errors import Refusal

BEGIN_ANEW = "begin a new session"


def is_short(answer: Refused) -> bool:
    """Return whether a use was refused because it does not fit in one of its budgets."""
    return answer.scope == Scope.BUDGET and answer.verdict in {Verdict.BUDGET_EXCEEDED, Verdict.QUOTA_HELD}


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


def why_bound(call: CallRequest) -> str:
    """Return why a call goes as no other model than made what it carries; empty if it may."""
    why = bound_by(call, FAMILIES[call.family].seals)
    return f"{why}: {BEGIN_ANEW}" if why else ""


def why_unfit(call: CallRequest, before: CallRequest, prices: CallPrices, asked_prices: CallPrices) -> str:
    """Return why a call cannot be sent as it is aimed, as another model than `before`; empty if it can."""
    models = tuple([target.model for target in call.aim.targets]) or (call.spec.model,)
    if any(price.vector is None for price in prices.named) and any(
        price.vector is not None for price in asked_prices.named
    ):
        return "it has no price"
    part = refused_part(FAMILIES[call.family].differences, call, before.spec.model, models)
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


def why_refused(answer: Refused, budgets: CallBudgets | None) -> str:
    """Return why limits refused a call as another model."""
    window = answer.budget
    if not is_short(answer) or window is None or budgets is None:
        return from_refused(answer).message.rstrip(".")
    budgets.name_in(window)
    return f'the budget "{window.name}" has too little left for that too'


def explain_refusal(refusal: Refusal, substitute: str, why: str) -> None:
    """Add to the message of a refusal why the call was not sent as the substitute."""
    message = f"{refusal.message} It was not sent as {substitute}: {why}."
    if not is_read_as_status(refusal.status, message):
        refusal.args = (message,)
