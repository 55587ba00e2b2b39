"""The cost of a use by its prices: the one pricer of charges, and of uses that are priced again.

A use is of one model, and parts of it may be of others, each with its own price. The cost is the sum, and
`CallFacts.beside` stores the price of each part. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from gateway.core.accounts.call_facts import OUTPUT, REASONING
from gateway.core.billing.price_book import Counts, cost_nano, without_request
from gateway.core.billing.service_tiers import PLACES, USUAL_TIERS, lacks_tier, tier_at
from gateway.core.billing.vector import Vector
from gateway.core.calls.tariff import CallPrices, PriceMatch, PriceOf, answering, is_model, of_hour
from gateway.core.metering.meter import Detail
from gateway.core.model import Caller

_NO_PRICE: Final = PriceMatch("", None)
_NO_TOOLS: Final[Mapping[str, int]] = {}


class ModelPart(NamedTuple):
    """The tokens of another model within a use, and their price, which is its own or the dearest of the use's."""

    model: str
    counts: Counts
    vector: Vector
    is_own: bool = True


NO_PARTS: Final[tuple[ModelPart, ...]] = ()


def price_of(  # noqa: PLR0917  # the caller, the prices at admission, and the outcome
    look_up: PriceOf, caller: Caller, prices: CallPrices, detail: Detail, counts: Counts, ended_ms: int,
    sent: str = "",
) -> PriceMatch:  # fmt: skip
    """Return the price of a use after its answer, which may name another model than the request.

    It is one of the prices at admission if the model was known then. `sent` is the model's name at its
    upstream. `ended_ms` is the time of the answer's end (Unix ms), by which some prices change.
    """
    named, answered = prices.named, detail.model
    if not named:
        return _NO_PRICE
    found = named[0]
    if len(named) > 1:
        found = answering(named, answered, counts, detail.tools, detail.service_tier, sent)
    if (found.vector is None or found.stands_in) and answered and not prices.own:
        if answered.lower() == found.model.lower():
            return found
        vector = of_hour(look_up(caller, answered, prices.at_ms, False), prices.at_ms, ended_ms)
        if vector is not None:
            return PriceMatch(answered, vector)
    return found


def served_tier(vector: Vector, asked: Sequence[str], counts: Sequence[int], tools: Mapping[str, int]) -> str:
    """Return the requested service tier of a use whose answer reports none, if it costs more or is unpriced.

    Otherwise return an empty text, so that a request alone cannot lower the price.
    """
    found, most = "", cost_nano(vector, counts, tools)
    places = [tier for tier in asked if tier in PLACES]
    names = [tier for tier in asked if tier not in PLACES and tier not in USUAL_TIERS]
    for name in names or [""]:
        tier = tier_at(name, places[0] if places else "")
        cost = cost_nano(vector, counts, tools, tier)
        if lacks_tier(vector, tier) or cost > most:
            found, most = tier, max(cost, most)
    return found


def parts_of(  # noqa: PLR0917  # as `price_of`, whose answer's price is `vector`
    look_up: PriceOf, caller: Caller, prices: CallPrices, vector: Vector, detail: Detail, counts: Counts,
    ended_ms: int,
) -> tuple[ModelPart, ...]:  # fmt: skip
    """Return the parts of a use that models other than the main one produced, each at its model's price.

    A part has at most the tokens that earlier parts leave. An unknown model has the highest price that the
    use may have.
    """
    parts, left = list[ModelPart](), counts
    for model, reported in detail.beside:
        part = tuple(
            [min(reported_tokens, most) for reported_tokens, most in zip(reported, left, strict=True)]
        )
        left = tuple([most - left_tokens for left_tokens, most in zip(part, left, strict=True)])
        known = [vector for vector in prices.named if is_model(model, vector.model)]
        own = max(known, key=lambda vector: len(vector.model)).vector if known else None
        if own is None and model:
            own = of_hour(look_up(caller, model, prices.at_ms, prices.own), prices.at_ms, ended_ms)
        is_own = own is not None and own.currency == vector.currency
        if own is None or not is_own:
            own, most = vector, cost_of_part(vector, part, detail.service_tier)
            for other in prices.in_currency(vector.currency):
                cost = cost_of_part(other, part, detail.service_tier)
                if cost > most:
                    own, most = other, cost
        parts.append(ModelPart(model, part, own, is_own))
    return tuple(parts)


def cost_of(
    vector: Vector, counts: Counts, tools: Mapping[str, int] = _NO_TOOLS, tier: str = "",
    parts: Sequence[ModelPart] = NO_PARTS,
) -> int:  # fmt: skip
    """Return the cost of a use in nano-units. Its `parts` of other models cost their own prices.

    The other tokens and the tools cost the price `vector` at the service `tier`.
    """
    if not parts:
        return cost_nano(vector, counts, tools, tier)
    whole = sum([cost_of_part(part.vector, part.counts, tier) for part in parts])
    return whole + cost_nano(vector, counts_left(counts, parts), tools, tier)


def cost_of_part(vector: Vector, counts: Counts, tier: str) -> int:
    """Return the cost in nano-units of tokens by another model in a call, without any price per request."""
    return cost_nano(without_request(vector), counts, tier=tier)


def counts_left(counts: Counts, parts: Sequence[ModelPart]) -> Counts:
    """Return the tokens of a use that are in no part; reasoning tokens are at most the output left."""
    for part in parts:
        counts = tuple([most - count for count, most in zip(part.counts, counts, strict=True)])
    return (*counts[:REASONING], min(counts[REASONING], counts[OUTPUT]), *counts[REASONING + 1 :])
