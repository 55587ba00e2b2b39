"""What a call claims of tokens and credits before it is made, and to how much output its hold binds it.

Pure. Under a strict plan the hold in tokens is the call's limit, and where credits are paid by token the hold
in credits is: a call that states no maximum is then sent with one.
"""

from __future__ import annotations

from gateway.core.billing.pricing import ENDLESS, TokenPrice, TokenRate
from gateway.core.calls.call import Call
from gateway.core.calls.estimate import Estimate
from gateway.core.calls.tariff import credits_of, price_of
from gateway.core.model import Decision, Service, Usage


def credits_claimed(
    service: Service, model: str, estimate: Estimate, units: int, models_beside: tuple[str, ...] = ()
) -> tuple[int, int]:
    """Credits of all a call could use, and the least they may be cut to: 0 where they are held whole."""
    price = price_of(service, model, models_beside)
    if price is None:
        return credits_of(service, model, Usage(units=units)), 0
    rate, read = _dearest(price, estimate.read), estimate.read
    most = rate.credits(max(read, estimate.ceiling))
    return min(most, ENDLESS), min(rate.credits(estimate.least), ENDLESS) if estimate.least else 0


def output_bound(service: Service, call: Call, estimate: Estimate, decision: Decision) -> int | None:
    """The most tokens of one answer that the hold covers; None where nothing binds the call."""
    most = ENDLESS
    if decision.bounded:
        held, weights = decision.held_tokens, decision.weights
        most = held if weights is None else weights.covered(held, estimate.read)
    price = price_of(service, call.model, call.models_beside)
    if price is not None:
        most = min(most, _dearest(price, estimate.read).covered(decision.held_credits))
    return None if most >= ENDLESS else max(1, (most - estimate.read) // call.choices)


def _dearest(price: TokenPrice, read: int) -> TokenRate:
    """The price of a call whose input costs whatever is dearer, cached or not."""
    return TokenRate(read, max(price.input, price.cached or 0), price.output)
