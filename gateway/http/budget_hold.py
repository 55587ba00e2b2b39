"""What one call holds of budgets: what it asks for, how far that binds it, and what it came to."""

from __future__ import annotations

from gateway.core.accounts.budgets import MONEY, TOKENS
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.facts import CallFacts
from gateway.core.billing.pricing import ENDLESS
from gateway.core.billing.rate import TokenRate, usual_rate
from gateway.core.calls.budget_claim import budget_bound, budget_claim
from gateway.core.calls.call import Call
from gateway.core.calls.estimate import Estimate
from gateway.core.calls.tool_uses import limit_uses
from gateway.core.families.refusal import from_decision
from gateway.core.model import INTEGER_MAX, Decision, HoldRequest
from gateway.errors import Refusal
from gateway.http.priced import Admitted, in_currency
from gateway.http.tally import Tally


class BudgetHold:
    """The part of a call's hold that is of `budgets`; `accounts` are those it took from, once admitted."""

    __slots__ = ("_claim", "_prices", "_read", "_usual", "accounts", "budgets")

    def __init__(
        self, budgets: CallBudgets, admitted: Admitted, estimate: Estimate, call: Call, request: HoldRequest
    ) -> None:
        """Have the request ask for what the call could cost, and for how many tokens it could use."""
        units = budgets.units
        self.budgets = budgets
        self.accounts: tuple[str, ...] = ()
        self._prices = in_currency(admitted, budgets.currency) if MONEY in units else ()
        claim = self._claim = budget_claim(self._prices, estimate, call)
        self._read = call.input_estimate
        self._usual: TokenRate | None = None
        request.budgets, request.names = budgets.accounts, budgets.names
        request.money, request.money_most = claim.money, claim.money_most
        request.money_least = claim.money_least
        if TOKENS in units:
            request.raw_tokens, request.raw_most = claim.raw_tokens, claim.raw_most
            request.raw_least = min(estimate.least, claim.raw_tokens)

    @property
    def usual(self) -> TokenRate | None:
        """What the call costs while it runs; None where nobody says, or no budget asks."""
        if self._usual is None and self._prices:
            self._usual = usual_rate(self._prices, self._read, in_money=True)
        return self._usual

    @property
    def counts_tokens(self) -> bool:
        """Whether a window is of tokens."""
        return TOKENS in self.budgets.units

    def name_in(self, decision: Decision) -> None:
        """Say what the budget is called that a decision tells of."""
        if decision.budget is not None:
            self.budgets.name_in(decision.budget)

    def refusal(self, decision: Decision, tally: Tally) -> Refusal:
        """The refusal a decision stands for, counted where a budget refuses."""
        refusal, window = from_decision(decision), decision.budget
        budget = None if window is None else self.budgets.by_id.get(window.budget_id)
        if budget is not None:
            tally.budget_refused(refusal.reason, budget.unit, budget.interval)
        return refusal

    def bound(self, request: HoldRequest, decision: Decision, estimate: Estimate, call: Call) -> int | None:
        """The call is admitted: the most tokens of one answer that its hold allows, None for no limit."""
        self.accounts = request.names
        enforced = self.budgets.enforced
        if MONEY in enforced:
            limit_uses(call, self._prices)
        return budget_bound(self._claim, call, estimate, decision, enforced)

    def covered(self, decision: Decision) -> int:
        """How many tokens of the call its hold covers."""
        most, rate = decision.raw_held if self.counts_tokens else ENDLESS, self.usual
        return most if rate is None else min(most, rate.paid(decision.money_held))

    def money(self, facts: CallFacts) -> int:
        """What a call came to in nano-units; nothing where it has no price in the currency of its budgets."""
        cost = facts.cost
        if cost is None or facts.currency != self.budgets.currency:
            return 0
        return min(cost, INTEGER_MAX)
