"""Whether the hold of a call that runs covers what was seen of it; what does not is extended meanwhile."""

from __future__ import annotations

from gateway.core.billing.rate import TokenRate
from gateway.core.calls.tariff import covered
from gateway.core.metering.making import AnswerMeter
from gateway.core.model import INTEGER_MAX, Caller, Decision, Observed, Service
from gateway.http.budget_hold import BudgetHold
from gateway.http.ports import Counters


class Coverage:
    """The hold of one call, as `decision` says it was taken; it is watched from when it no longer covers."""

    __slots__ = (
        "_budget_hold",
        "_caller",
        "_counters",
        "_decision",
        "_most",
        "_observed",
        "_rate",
        "_request_id",
        "_service",
    )

    def __init__(  # noqa: PLR0917  # whose hold, of what, and at which price
        self, counters: Counters, caller: Caller, request_id: str, service: Service, decision: Decision,
        rate: TokenRate | None, budget_hold: BudgetHold | None, most: int,
    ) -> None:  # fmt: skip
        self._counters, self._caller, self._request_id = counters, caller, request_id
        self._service, self._decision, self._rate, self._budget_hold = service, decision, rate, budget_hold
        self._most = most
        self._observed: Observed | None = None

    def watch(self) -> Observed:
        """Have the hold renewed from now on."""
        observed = self._observed
        if observed is not None:
            return observed
        budget_hold, decision = self._budget_hold, self._decision
        observed = self._observed = Observed(
            self._caller, self._request_id, self._covered(),
            counts=self._service.counts_tokens, rate=self._rate,
            weights=decision.weights, quota=decision.held_tokens, most=self._most or INTEGER_MAX,
        )  # fmt: skip
        if budget_hold is not None:
            observed.budgets, observed.money_rate = budget_hold.accounts, budget_hold.usual
            observed.counts_raw = budget_hold.counts_tokens
        self._counters.watch(observed)
        return observed

    def let_go(self) -> None:
        """The call is over, or another holds what it held."""
        if self._observed is not None:
            self._counters.unwatch(self._observed)
            self._observed = None

    def covers(self, tokens: int, meter: AnswerMeter | None) -> bool:
        """Whether a stream of so many tokens may go on."""
        decision, observed = self._decision, self._observed
        weighed = _weighed(decision, meter) if decision.weights is not None else 0
        if observed is None:
            if tokens <= self._covered() and weighed <= decision.held_tokens:
                return True
            observed = self.watch()
        observed.tokens, observed.weighed = tokens, weighed
        holds = tokens < observed.held or tokens == observed.held == observed.most
        if holds and (not weighed or weighed < observed.quota):
            return True
        if observed.exhausted:
            return not observed.cut
        self._counters.outgrown(observed)
        return True

    def _covered(self) -> int:
        """Tokens the hold covers as it was taken; what a plan weighs is apart."""
        decision, budget_hold = self._decision, self._budget_hold
        counts = self._service.counts_tokens and decision.weights is None
        most = covered(counts, self._rate, decision.held_tokens, decision.held_credits)
        return most if budget_hold is None else min(most, budget_hold.covered(decision))


def _weighed(decision: Decision, meter: AnswerMeter | None) -> int:
    """How many tokens of the quota were seen so far."""
    weights = decision.weights
    if weights is None or meter is None:
        return 0
    usage = meter.so_far()
    return weights.count(meter.detail.counts(usage), usage.total)
