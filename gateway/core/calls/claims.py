"""The tokens and credits that a call claims before it is made, and the bound of its output by its hold.

Pure. Under a strict plan, the hold in tokens is the call's limit. If credits are priced by tokens, so is the
hold in credits. A call without a stated maximum is then sent with one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.accounts.budgets import MAXIMUM, MONEY, TOKENS, UNIT_OF
from gateway.core.billing.money import ENDLESS
from gateway.core.billing.price_book import (
    NO_COUNTS,
    PriceQualifiers,
    TokenRate,
    dearest_rate,
    highest_rates,
    plain_rate,
)
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import Estimate
from gateway.core.calls.storage import STORAGE_TOKENS_MAX
from gateway.core.calls.tariff import Vectors, charge_of, factor_of, is_in_money
from gateway.core.calls.tool_uses import TOOL_USES_LIKELY, limit_uses, models_search, priced_tools, uses_of
from gateway.core.families.registry import OF_METER
from gateway.core.model import INTEGER_MAX, Admitted, Service


@dataclass(slots=True)
class CallClaim:
    """What one call reserves before it runs, and its maximum cost by tokens.

    Its hold is in `credits`, which may be cut down to `credits_least` (0: not at all), or in `units`.
    """

    estimate: Estimate
    dearest: TokenRate | None  # the maximum rate, None if tokens do not set the price
    credits: int
    credits_least: int
    units: int
    budget: BudgetClaim | None = None  # None if no budget applies
    vectors: Vectors = ()  # prices that the budgets count by


def claim_of(  # noqa: PLR0917  # a call, what it costs, and how much of it there may be
    call: CallRequest,
    service: Service,
    vectors: Vectors,
    estimate: Estimate,
    units: int,
    of_budgets: Vectors | None,
    hold: str = "",
) -> CallClaim:
    """Return the claim of a call: the amounts to hold (reserve) for it before it is sent.

    `vectors` are the prices of models that may answer, `of_budgets` those for its budgets (None if it has
    none). `hold` is its budgets' rule for the size of holds, empty if the plan decides.
    """
    dearest = dearest_of(service, vectors, estimate, call)
    budget = None if of_budgets is None else budget_claim(of_budgets, estimate, call, hold)
    credits_, least, units = claimed(service, dearest, estimate, units)
    return CallClaim(estimate, dearest, credits_, least, units, budget, of_budgets or ())


def dearest_of(service: Service, vectors: Vectors, estimate: Estimate, call: CallRequest) -> TokenRate | None:
    """Return the highest rate by which a call may be charged; None if tokens do not set its price."""
    if not vectors:
        return None
    asks = asks_of(call, vectors, estimate.read)
    return dearest_rate(vectors, estimate.read, asks, factor_of(service), in_money=is_in_money(service))


def claimed(service: Service, rate: TokenRate | None, estimate: Estimate, units: int) -> tuple[int, int, int]:
    """Return the credits to hold, the least that the hold may be cut to (0: it may not be), and the units."""
    if rate is None:
        credits_, _, units = charge_of(service, (), NO_COUNTS, None, units)
        return credits_, 0, units
    most = max(estimate.read, estimate.ceiling)
    if rate.in_money:
        return 0, 0, rate.charge_for(most)
    return rate.credits(most), rate.credits(estimate.least) if estimate.least else 0, units


def output_bound(
    rate: TokenRate | None, call: CallRequest, estimate: Estimate, admitted: Admitted
) -> int | None:
    """Return the most output tokens of one choice that the call's hold covers; None if unbounded."""
    most = ENDLESS
    if admitted.bounded:
        held, weights = admitted.held_tokens, admitted.weights
        most = held if weights is None else weights.covered(held, estimate.read)
    if rate is not None:
        most = min(most, rate.covered(admitted.held_credits))
    return None if most >= ENDLESS else estimate.bound(most, call)


def likely_asks(call: CallRequest, may: PriceQualifiers, read: int) -> PriceQualifiers:
    """Return those of the priced extras in `may` that the call asks for (cache writes, media, tools…).

    `read` are its likely input tokens.
    """
    if call.body.document is None or OF_METER.get(call.meter) is None:
        return may
    known = _held_units(call, read)
    uses = may.tools and {
        name: known.get(name) or min(most, TOOL_USES_LIKELY) for name, most in may.tools.items()
    }
    return _named_asks(call, may.sound, uses)


def _named_asks(call: CallRequest, sound: bool, uses: Mapping[str, int] | None) -> PriceQualifiers:
    """Return the priced extras that a call asks for by name, with its `sound` and its `uses` of tools."""
    names = call.body.names
    media = call.media.tokens > 0 or names.files > 0
    tiers = call.tiers
    if call.spec.attempts:
        tiers += tuple([attempt.tier for attempt in call.spec.attempts if attempt.tier])
    return PriceQualifiers(names.caches, names.long_caches, media, sound, tiers, uses)


def _held_units(call: CallRequest, read: int) -> dict[str, int]:
    """Return the units that a call holds; those of storage are the most if a file's length is unknown."""
    return call.units(max(read, STORAGE_TOKENS_MAX) if call.body.names.files or call.media.endless else read)


def asks_of(call: CallRequest, vectors: Vectors, read: int = ENDLESS) -> PriceQualifiers:
    """Return the priced extras that a call of `read` input tokens may use: cache writes, media, tiers, tools.

    Its API excludes some; all may apply if the request cannot be read. Extras that change no price of
    `vectors` are not checked.
    """
    document, names, family = call.body.document, call.body.names, OF_METER.get(call.meter)
    if document is None or family is None:
        return PriceQualifiers()
    priced = priced_tools(vectors)
    uses = uses_of(call, document, priced) if priced else None
    if call.spec.units.likely:
        uses = {**(uses or {}), **_held_units(call, read), **(call.spec.units.most or {})}
    caches = blobs = sound = False
    excluded, tiers = family.exclusions, list[str]()
    for vector in vectors:
        dearest = highest_rates(vector, read)
        caches = caches or dearest.dear_caches
        blobs = blobs or dearest.dear_blobs
        sound = sound or dearest.dear_sound
        for named in (vector.service_tiers, vector.tiers):
            if named:
                tiers += [tier for tier in named if not excluded.tier(document, tier)]
    caches = caches and not excluded.cache(document, names)
    return PriceQualifiers(
        caches,
        caches,
        blobs and not (not call.media.tokens and not call.objects.named and excluded.media(document, names)),
        sound and not excluded.sound(document, names),
        tuple(tiers),
        uses,
    )


# What a call reserves in budgets before it runs, and the bound of its output by that. Pure.
# Where its plan admits what is available, windows hold what is likely, at the prices that the call asks for;
# where it is strict, or a budget says so, the most it could use, at the dearest prices it may have.
@dataclass(slots=True)
class BudgetClaim:
    """What budget windows hold for a call: likely amounts, and the most."""

    money: int = 0  # likely, in nano-units
    money_most: int = 0
    money_least: int = 0  # the hold may be cut to this; 0 if the call states its maximum
    budget_tokens: int = 0  # likely
    budget_tokens_most: int = 0
    dearest: TokenRate | None = None  # the highest rate, None without a price
    likely: TokenRate | None = None  # the usual rate
    holds_most: bool = False  # the windows hold the most


def budget_claim(
    vectors: Sequence[Vector], estimate: Estimate, call: CallRequest, hold: str = ""
) -> BudgetClaim:
    """Return a call's claim on budgets. `vectors` are the prices of all models that may answer.

    Without prices it claims no money. `hold` is the rule of the budgets (`likely` or `maximum`), which
    replaces the plan's.
    """
    need, fewest, read = estimate.need, estimate.least, estimate.read
    ceiling, holds_most = max(read, estimate.ceiling), hold == MAXIMUM
    raw = ceiling if holds_most else need
    budget_tokens_most = raw if hold else ceiling
    if not vectors:
        return BudgetClaim(budget_tokens=raw, budget_tokens_most=budget_tokens_most, holds_most=holds_most)
    dearest, may = None, None
    if len(vectors) == 1 and call.asks is False and not call.spec.units.likely and not models_search(call):
        dearest = plain_rate(vectors[0], read)  # most calls are text alone: the same rate, but faster
    if dearest is None:
        may = asks_of(call, vectors, read)
        dearest = dearest_rate(vectors, read, may, in_money=True)
    rate = dearest
    money = most = min(dearest.cost(read, ceiling - read), INTEGER_MAX)
    if not holds_most:
        likely_read = _likely_read(estimate, call)
        likely = plain_rate(vectors[0], likely_read) if may is None else None
        if likely is None:
            may = may or asks_of(call, vectors, read)
            likely = dearest_rate(vectors, likely_read, likely_asks(call, may, likely_read), in_money=True)
        rate = likely
        if estimate.input_share != 1:  # 1 means that nothing was learned, so the price is exact
            rate.input = math.ceil(rate.input * estimate.input_share)
        money = min(rate.cost(likely_read, need - likely_read), most)
    least = min(dearest.cost(read, fewest - read), money) if fewest else 0
    return BudgetClaim(
        money, money if hold else most, least, raw, budget_tokens_most, dearest, rate, holds_most
    )


def _likely_read(estimate: Estimate, call: CallRequest) -> int:
    """Return the input tokens in the likely hold of a call."""
    return min(min(estimate.read, estimate.need), call.input_estimate)  # noqa: PLW3301  # of two it is compiled


def unheld_rate(vectors: Sequence[Vector], estimate: Estimate, call: CallRequest) -> TokenRate | None:
    """Return the rate of the likely hold that a call without a budget of money would have, without tools.

    None if it has no price. The call may have been sent, so that its document is released.
    """
    if not vectors:
        return None
    read = _likely_read(estimate, call) or call.input_estimate  # nothing is estimated where no limit asks
    rate = plain_rate(vectors[0], read) if len(vectors) == 1 else None
    return rate or dearest_rate(vectors, read, _named_asks(call, False, None), in_money=True)


def budget_bound(
    claim: BudgetClaim, call: CallRequest, estimate: Estimate, admitted: Admitted, enforced: Collection[str]
) -> int | None:
    """Return the most output tokens of one choice that the call's budgets allow; None if unbounded.

    Only budgets in the units `enforced` count, and only if their hold was cut to what was free, or is the
    most that the call could use.
    """
    most, strict = ENDLESS, claim.holds_most
    if MONEY in enforced and claim.dearest is not None and (strict or admitted.money_held != claim.money):
        most = claim.dearest.paid(admitted.money_held)
    if TOKENS in enforced and (strict or admitted.budget_tokens_held != claim.budget_tokens):
        most = min(most, admitted.budget_tokens_held)
    return None if most >= ENDLESS else estimate.bound(most, call)


def answer_bound(
    call: CallRequest, claim: CallClaim, admitted: Admitted, enforced: Collection[str]
) -> int | None:
    """Return the most output tokens of one choice by the hold and budgets in `enforced` units, or None."""
    bound = None
    if admitted.bounded or claim.dearest is not None:
        bound = output_bound(claim.dearest, call, claim.estimate, admitted)
    if claim.budget is not None:
        of_budgets = budget_bound(claim.budget, call, claim.estimate, admitted, enforced)
        if bound is None or (of_budgets is not None and of_budgets < bound):
            bound = of_budgets
    return bound


def bind_uses(call: CallRequest, claim: CallClaim, vectors: Vectors, enforced: Collection[str]) -> None:
    """Limit uses of priced tools to the held number, if the price or an `enforced` budget depends on them."""
    if claim.dearest is not None:
        limit_uses(call, vectors)
    if claim.budget is not None and MONEY in enforced:
        limit_uses(call, claim.vectors)


# Steps in which a stated task budget is lowered: another number would miss the upstream's cache.
TASK_STEPS: Final = 16


def lower_task(call: CallRequest, claim: BudgetClaim, admitted: Admitted) -> None:
    """Lower the task budget in a call's body to the tokens left in its tightest budget.

    The model then ends its work before it is cut off: for its API this field is advice.
    """
    window, config = admitted.budget, (call.body.document or {}).get("output_config")
    task = config.get("task_budget") if isinstance(config, dict) else None
    if window is None or not isinstance(task, dict) or task.get("type") != TOKENS:
        return
    total = task.get("total")
    stated = task.get("remaining", total)
    if type(total) is not int or type(stated) is not int or total <= 0:
        return  # its upstream refuses it
    rate, unit, there = claim.likely, UNIT_OF[window.unit], window.limit - window.used
    if unit == TOKENS:
        left = there + admitted.budget_tokens_held - call.input_estimate
    elif unit == MONEY and rate is not None:
        left = rate.paid(there + admitted.money_held) - rate.read
    else:
        return
    if left < stated:
        step = -(-total // TASK_STEPS)
        task["remaining"], call.body.changed = max(left, 0) // step * step, True
