"""A service's own prices of models: credits per million tokens, by kind.

They are used like those of the price book, as a `Vector` in nano-credits. Pure.
"""

from __future__ import annotations

from gateway.core.billing.money import ANY_MODEL, NANO, CreditRates, ServicePricing
from gateway.core.billing.price_book import KINDS, MODELS_REMEMBERED_MAX, filled
from gateway.core.billing.vector import Vector

_found: dict[tuple[int, str], tuple[ServicePricing, Vector | None]] = {}


def token_price(pricing: ServicePricing, model: str) -> Vector | None:
    """Return the price of a model's tokens in nano-credits, or None.

    The exact name counts first, then the longest prefix before a `*`; case matters.
    """
    known = _found.get((id(pricing), model))
    if known is not None:
        return known[1]
    price = _look(pricing, model)
    vector = None if price is None else _vector_of_tokens(price, pricing)
    if len(_found) >= MODELS_REMEMBERED_MAX:
        _found.clear()
    _found[id(pricing), model] = pricing, vector  # the reference keeps the id from being reused
    return vector


def _look(pricing: ServicePricing, model: str) -> CreditRates | None:
    prices = pricing.per_million or {}
    if model in prices and model != ANY_MODEL:
        return prices[model]
    fitting = [name for name in prices if name.endswith(ANY_MODEL) and model.startswith(name[:-1])]
    return prices[max(fitting, key=len)] if fitting else None


def _vector_of_tokens(price: CreditRates, pricing: ServicePricing) -> Vector:
    factor = int(pricing.markup * NANO)
    own = {kind: getattr(price, kind) for kind in KINDS}
    return Vector(
        0, "", filled({kind: None if rate is None else rate * factor for kind, rate in own.items()})
    )
