"""What a call claims of budgets before it is made, and to how much output its hold of them binds it. Pure.

Money is counted at the dearest of the prices the call may have. Where its plan admits what is available,
windows hold what is likely; where it is strict, the most the call could use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gateway.core.accounts.budgets import MONEY, TOKENS
from gateway.core.billing.pricing import ENDLESS
from gateway.core.billing.rate import TokenRate, dearest_rate
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Call
from gateway.core.calls.claim import asks_of
from gateway.core.calls.estimate import Estimate
from gateway.core.model import INTEGER_MAX, Decision


@dataclass(slots=True)
class BudgetClaim:
    """What windows hold of a call: `money` in nano-units and `raw_tokens` are likely, `…_most` is all it
    could use.

    Money may be cut to `money_least`, 0 where the call states its maximum. `dearest` is what the call could
    cost at most; None where no price is known.
    """

    money: int = 0
    money_most: int = 0
    money_least: int = 0
    raw_tokens: int = 0
    raw_most: int = 0
    dearest: TokenRate | None = None


def budget_claim(vectors: Sequence[Vector], estimate: Estimate, call: Call) -> BudgetClaim:
    """What a call claims; `vectors` are the prices of all models that may answer it, none for no money."""
    need, fewest, read = estimate.need, estimate.least, estimate.read
    ceiling = max(read, estimate.ceiling)
    if not vectors:
        return BudgetClaim(raw_tokens=need, raw_most=ceiling)
    dearest = dearest_rate(vectors, read, asks_of(call, vectors, read), in_money=True)
    most = min(dearest.cost(read, ceiling - read), INTEGER_MAX)
    likely_read = min(read, need)
    likely_read = min(likely_read, call.input_estimate)
    likely = min(dearest.cost(likely_read, need - likely_read), most)
    least = min(dearest.cost(read, fewest - read), likely) if fewest else 0
    return BudgetClaim(likely, most, least, need, ceiling, dearest)


def budget_bound(
    claim: BudgetClaim, call: Call, estimate: Estimate, decision: Decision, enforced: Collection[str]
) -> int | None:
    """The most tokens of one answer that budgets let it have; None where nothing binds the call.

    It is bound where a window of the units `enforced` holds not just what is likely: it was cut to what was
    free, or is all the call could use.
    """
    most = ENDLESS
    if MONEY in enforced and claim.dearest is not None and decision.money_held != claim.money:
        most = claim.dearest.paid(decision.money_held)
    if TOKENS in enforced and decision.raw_held != claim.raw_tokens:
        most = min(most, decision.raw_held)
    return None if most >= ENDLESS else estimate.bound(most, call)
