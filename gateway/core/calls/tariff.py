"""What a use costs in credits: by the unit, once for all, or by token.

The same rule prices an estimate, for the hold, and what was really used.
"""

from __future__ import annotations

from gateway.core.billing.pricing import (
    ANY_MODEL,
    ENDLESS,
    NO_PRICING,
    Pricing,
    TokenPrice,
    TokenRate,
    whole_credits,
)
from gateway.core.model import INTEGER_MAX, Observed, Service, Usage
from gateway.errors import ModelNotPriced

CONSUMPTION = "consumption"
PAY_PER_USE = "pay_per_use"


def misfit(meter: str, one_time: bool, pricing: Pricing) -> tuple[str, str] | None:
    """Why a business model cannot use a price: the field, and what is right; None where it can."""
    if pricing.per_million is not None:
        if meter == PAY_PER_USE:
            return "pricing.per_million", "belongs to Consumption; Pay-Per-Use takes tiers"
        if meter == CONSUMPTION and one_time:
            return "pricing.per_million", "belongs to Pay-As-You-Go; One-Time costs its credits once"
    elif pricing.tiers and meter == CONSUMPTION:
        return "pricing.tiers", "belongs to Pay-Per-Use; Consumption takes credits or per_million"
    if meter not in {CONSUMPTION, PAY_PER_USE} and pricing != NO_PRICING:
        return "pricing", "belongs to Consumption or Pay-Per-Use; a Subscription is not priced by use"
    return None


def check_priced(service: Service, model: str, models_beside: tuple[str, ...] = ()) -> None:
    """`ModelNotPriced` where a price decides and there is none for a model that may answer.

    A price that its business model cannot use is none. A call that names no model has no tokens.
    """
    prices = service.pricing.per_million
    if prices is None:
        if service.pricing.tiers and service.meter == CONSUMPTION:
            raise ModelNotPriced("This service is priced by units, which its business model cannot use.")
    elif service.meter == PAY_PER_USE:
        raise ModelNotPriced("This service is priced by token, which its business model cannot use.")
    elif service.meter == CONSUMPTION and not service.one_time:
        if not model:
            raise ModelNotPriced("This service is priced by the tokens of a model, and this call names none.")
        if ANY_MODEL not in prices:
            for name in (model, *models_beside):
                if name not in prices:
                    raise ModelNotPriced(f"The model {name} has no price here.")


def is_by_token(service: Service) -> bool:
    """Whether tokens set the price, so that a hold is an estimate and not the price itself."""
    return service.meter == CONSUMPTION and not service.one_time and service.pricing.per_million is not None


def price_of(service: Service, model: str, models_beside: tuple[str, ...] = ()) -> TokenPrice | None:
    """What a model's tokens cost; None where tokens do not set the price, or the model has none.

    Where others may answer instead, whoever asks chooses which one cannot: each kind is the most expensive.
    """
    if not is_by_token(service) or service.pricing.per_million is None:
        return None
    prices = service.pricing.per_million
    others = prices.get(ANY_MODEL)
    found = prices.get(model, others)
    for name in models_beside:
        beside = prices.get(name, others)
        if found is not None and beside is not None:
            found = found.dearest(beside)
    return found


def rate_of(service: Service, model: str, read: int, models_beside: tuple[str, ...] = ()) -> TokenRate | None:
    """What a call costs while it runs, `read` tokens being its input; None where tokens do not say."""
    price = price_of(service, model, models_beside)
    return None if price is None else TokenRate(read, price.input, price.output)


def covered(counts: bool, rate: TokenRate | None, tokens: int, credits_: int) -> int:
    """Tokens of a call that a hold of tokens and credits covers."""
    most = tokens if counts else ENDLESS
    return most if rate is None else min(most, rate.covered(credits_))


def extended(observed: Observed, tokens: int, credits_: int) -> None:
    """Note what the hold of a live call is now, in tokens of its quota and in credits."""
    counts = observed.counts
    if observed.weights is not None:
        observed.quota, counts = tokens, False
    observed.held = covered(counts, observed.rate, tokens, credits_)


def credits_of(service: Service, model: str, usage: Usage, models_beside: tuple[str, ...] = ()) -> int:
    """Whole credits of one request that `check_priced` let pass, never more than are counted exactly.

    0 where the service takes none.
    """
    return charge_of(service, model, usage, models_beside)[0]


def charge_of(
    service: Service, model: str, usage: Usage, models_beside: tuple[str, ...] = ()
) -> tuple[int, int]:
    """The same, and by how many nano-credits they are more than it costs."""
    if service.meter != CONSUMPTION:
        return 0, 0
    if service.one_time:
        return service.credits, 0
    price = price_of(service, model, models_beside)
    if price is None:
        return min(service.credits * usage.units, INTEGER_MAX), 0
    credits_, over = whole_credits(price.nano(usage.input, usage.output, usage.cached))
    return (credits_, over) if credits_ <= INTEGER_MAX else (INTEGER_MAX, 0)
