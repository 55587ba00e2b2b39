"""What a use costs in credits: by the unit, once for all, or by token.

The same rule prices an estimate, for the hold, and what was really used.
"""

from __future__ import annotations

from gateway.core.model import INTEGER_MAX, Service, Usage
from gateway.core.pricing import ANY_MODEL, ENDLESS, TokenRate, token_credits

CONSUMPTION = "consumption"


def is_by_token(service: Service) -> bool:
    """Whether tokens set the price, so that a hold is an estimate and not the price itself."""
    return service.meter == CONSUMPTION and not service.one_time and service.pricing.per_million is not None


def rate_of(service: Service, model: str, read: int) -> TokenRate | None:
    """What a call costs while it runs, `read` tokens being its input; None where tokens do not say."""
    if not is_by_token(service) or service.pricing.per_million is None:
        return None
    prices = service.pricing.per_million
    price = prices.get(model, prices.get(ANY_MODEL))
    return None if price is None else TokenRate(read, price.input, price.output)


def covered(counts: bool, rate: TokenRate | None, tokens: int, credits_: int) -> int:
    """Tokens of a call that a hold of tokens and credits covers."""
    most = tokens if counts else ENDLESS
    return most if rate is None else min(most, rate.covered(credits_))


def credits_of(service: Service, model: str, usage: Usage) -> int:
    """Credits of one request, never more than are counted exactly; 0 where the service takes none.

    Of a service priced by token, a model that has no price costs what a unit does.
    """
    if service.meter != CONSUMPTION:
        return 0
    if service.one_time:
        return service.credits
    by_token = None
    if service.pricing.per_million is not None:
        by_token = token_credits(
            service.pricing.per_million,
            model,
            input_tokens=usage.input,
            output_tokens=usage.output,
            cached_tokens=usage.cached,
        )
    return min(service.credits * usage.units if by_token is None else by_token, INTEGER_MAX)
