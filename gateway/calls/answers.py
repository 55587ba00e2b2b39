"""The answer of the limits to a use that asks for a hold: an admission, or a refusal and its message."""

from __future__ import annotations

from gateway.calls.ports import AdmissionPorts
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.runs import ENDLESS_CALLS
from gateway.core.accounts.spent_answers import is_read_as_status
from gateway.core.families.refusal import from_refused
from gateway.core.model import Admitted, Caller, Refused, Scope, Verdict
from gateway.errors import Refusal


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


def is_short(answer: Refused) -> bool:
    """Return whether a use was refused because it does not fit in one of its budgets."""
    return answer.scope == Scope.BUDGET and answer.verdict in {Verdict.BUDGET_EXCEEDED, Verdict.QUOTA_HELD}


def why_refused(answer: Refused, budgets: CallBudgets | None) -> str:
    """Return why limits refused a call as another model."""
    window = answer.budget
    if not is_short(answer) or window is None or budgets is None:
        return from_refused(answer).message
    budgets.name_in(window)
    return f'the budget "{window.name}" has too little left for that too'


def explain_refusal(refusal: Refusal, substitute: str, why: str) -> None:
    """Add to the message of a refusal why the call was not sent as the substitute."""
    message = f"{refusal.message} It was not sent as {substitute}: {why.rstrip('.')}."
    if not is_read_as_status(refusal.status, message):
        refusal.args = (message,)
