"""The cost of a use: by unit, once only, by token, or the cost of the call itself.

The same rules price the estimate for the hold and the real usage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.core.accounts.definitions import NegotiatedTerms
from gateway.core.billing.hours import dearest_factor
from gateway.core.billing.money import ENDLESS, NO_PRICING, ServicePricing, whole_credits
from gateway.core.billing.price_book import (
    TokenRate,
    at_factor,
    at_moment,
    charged,
    cost_nano,
    dearest,
    pictures_by_tokens,
    usual_rate,
)
from gateway.core.billing.service_tiers import lacks_tier
from gateway.core.billing.token_prices import token_price
from gateway.core.billing.vector import IMAGES, SAME, Factor, Vector
from gateway.core.calls.call import CallRequest
from gateway.core.families.family import never
from gateway.core.families.registry import OF_METER
from gateway.core.model import BY_BUDGETS, BY_CREDITS, BY_QUOTA, INTEGER_MAX, Caller, HoldExtension, Service
from gateway.errors import ModelNotPriced

SUBSCRIPTION = "subscription"
CONSUMPTION = "consumption"
PAY_PER_USE = "pay_per_use"

# The price of a model for a caller's organization at a time (Unix ms), or None. Where the last
# argument is true, in its own currency alone.
PriceOf = Callable[[Caller, str, int, bool], Vector | None]
# The prices of the models that may answer a call, the requested one first; none if tokens have no price.
Vectors = Sequence[Vector]
UNPRICED: Final[tuple[Vector, ...]] = ()
# Kinds of tokens for media that a model generates.
_MADE: Final = frozenset({"audio_output", "image_output"})


def as_negotiated(base: Service, negotiated: NegotiatedTerms | None) -> Service:
    """Return a service of the catalogue with the terms that an organization has negotiated."""
    meter = (negotiated and negotiated.meter) or base.meter
    counts = None if negotiated is None else negotiated.counts_tokens
    if counts is None:
        counts = base.counts_tokens or (meter == SUBSCRIPTION and not base.counts_none)
    service = replace(base, meter=meter, counts_tokens=counts)
    if negotiated is None:
        return service
    pricing = negotiated.pricing
    if pricing is None:
        # Units at tiers become units at credits, which an organization always negotiates.
        flat = meter == CONSUMPTION and bool(base.pricing.tiers)
        pricing = NO_PRICING if flat and base.meter != meter else base.pricing
    return replace(service, credits=negotiated.credits, pricing=pricing)


def other_currency(service: Service, pays: str) -> str:
    """Return the currency of a service's units if it differs from the organization's `pays`; else empty."""
    costs = service.pricing.currency if service.meter == PAY_PER_USE else ""
    return "" if costs == pays else costs


def misfit(meter: str, one_time: bool, pricing: ServicePricing) -> tuple[str, str] | None:
    """Return why a business model cannot use a price, as field and remedy, or None if it can."""
    if meter not in {CONSUMPTION, PAY_PER_USE}:
        if pricing == NO_PRICING:
            return None
        return "pricing", "belongs to Consumption or Pay-Per-Use; a Subscription is not priced by use"
    at_cost = pricing.at_cost
    if pricing.per_million is not None:
        if meter == PAY_PER_USE:
            return "pricing.per_million", "belongs to Consumption; Pay-Per-Use takes tiers or at_cost"
        if one_time:
            return "pricing.per_million", "belongs to Pay-As-You-Go; One-Time costs its credits once"
    elif at_cost is not None:
        if one_time:
            return "pricing.at_cost", "belongs to Pay-As-You-Go; One-Time costs its credits once"
        if meter == CONSUMPTION and at_cost.credits_per_unit is None:
            return (
                "pricing.at_cost.credits_per_unit",
                "must say how many credits a unit of the currency is: Consumption is paid with credits",
            )
        if meter == PAY_PER_USE and at_cost.credits_per_unit is not None:
            return "pricing.at_cost.credits_per_unit", "belongs to Consumption; Pay-Per-Use is paid in money"
    elif pricing.tiers and meter == CONSUMPTION:
        return "pricing.tiers", "belongs to Pay-Per-Use; Consumption takes credits, per_million or at_cost"
    return None


def vectors_of(
    service: Service, models: Sequence[str], book: Callable[[str], Vector | None], apart: int = 0
) -> tuple[Vector, ...]:
    """Return the prices by which to charge a call, for the models that may answer.

    Empty if the service has no prices by token. Each of the first `apart` models (the targets of a
    model's name) keeps its own price; for all others the highest one counts. `book` returns a model's
    price in the currency of the payer. Raise `ModelNotPriced` if a required price is missing, or does not
    fit the business model.
    """
    pricing, meter = service.pricing, service.meter
    by_token = pricing.per_million is not None or pricing.at_cost is not None
    once = service.one_time and meter == CONSUMPTION
    if meter not in {CONSUMPTION, PAY_PER_USE} or (once and not pricing.tiers):
        return UNPRICED
    why = misfit(meter, service.one_time, pricing)
    if why is not None:
        raise ModelNotPriced(f"This service's business model cannot use its price: {why[0]} {why[1]}.")
    if not by_token:
        return UNPRICED
    if not models or not models[0]:
        raise ModelNotPriced("This service is priced by the tokens of a model, and this call names none.")
    found = []
    for name in models:
        vector = book(name) if pricing.per_million is None else token_price(pricing, name)
        if vector is None:
            raise ModelNotPriced(f"The model {name} has no price, and its service is charged by that price.")
        found.append(vector)
    if pricing.per_million is None:
        return tuple(found)
    return tuple(found) if apart > 1 else (dearest(found),)


def unpriced_part(
    call: CallRequest, vectors: Vectors, makers: Vectors | None = None
) -> tuple[str, str] | None:
    """Return a service tier or medium of a call that has no price, in words, and the field that asks for it.

    None if all have a price. `makers` are the prices of those models that may make sound and pictures, if not
    of all.
    """
    document, family = call.body.document, OF_METER.get(call.meter)
    if document is None or family is None:
        return None
    rules = family.exclusions
    lacks = {kind for vector in (vectors if makers is None else makers) for kind in vector.lacks}
    deaf = False
    for vector in vectors:
        deaf = deaf or ("audio_input" in vector.lacks and "audio_second" not in vector.units)
    for tier in call.tiers:
        if any(lacks_tier(vector, tier) for vector in vectors):
            return f"the service tier {tier}", rules.tier_fields[0]
    if deaf and (call.storage or not call.spec.units.likely) and not rules.heard(document, call.body.names):
        return "sound that is read, or a file that may be sound", "messages"
    made = makes(call) if "audio_output" in lacks or "image_output" in lacks else []
    if "audio_output" in lacks and "audio_output" in made:
        return "sound that is made", "modalities"
    if "image_output" in lacks and "image_output" in made:
        return "pictures that are made", "modalities"
    return None


def makes(call: CallRequest) -> list[str]:
    """Return the kinds of tokens for sound and images that the answer to a call may have.

    None for calls that are measured in other units. A model whose name is one for pictures may make some
    unasked.
    """
    document, family = call.body.document, OF_METER.get(call.meter)
    if document is None or family is None or call.spec.units.likely or call.output_max == 0:
        return []
    rules, found = family.exclusions, list[str]()
    if rules.sound is not never and not rules.sound(document, call.body.names):
        found.append("audio_output")
    if not rules.pictures(document, call.body.names) or any(
        _PICTURES in name.lower() for name in call.models
    ):
        found.append("image_output")
    return found


_PICTURES: Final = "image"


def is_by_token(service: Service) -> bool:
    """Return whether tokens set the price in credits, so that a hold is an estimate and not the price."""
    pricing = service.pricing
    if service.meter != CONSUMPTION or service.one_time:
        return False
    return pricing.per_million is not None or pricing.at_cost is not None


def is_in_money(service: Service) -> bool:
    """Return whether a call is charged its cost, in units of money."""
    return service.meter == PAY_PER_USE and service.pricing.at_cost is not None


def factor_of(service: Service) -> Factor:
    """Return the factor from a nano-unit of a call's cost to nano-credits, or to units of money.

    It is 1 if the service is not charged at cost.
    """
    at_cost = service.pricing.at_cost
    return SAME if at_cost is None else at_cost.factor


def rate_of(service: Service, vectors: Vectors, read: int) -> TokenRate | None:
    """Return the rate of a running call with `read` input tokens, or None if tokens do not set the price."""
    if not vectors:
        return None
    return usual_rate(vectors, read, factor_of(service), in_money=is_in_money(service))


def covered(counts: bool, rate: TokenRate | None, tokens: int, credits_: int) -> int:
    """Return how many tokens of a call are covered by a hold (reservation) of `tokens` and `credits_`.

    `counts` says whether the call's quota counts tokens, `rate` is its price in credits.
    """
    most = tokens if counts else ENDLESS
    return most if rate is None else min(most, rate.covered(credits_))


def extended(
    observed: HoldExtension, tokens: int, credits_: int, money: int = ENDLESS, budget_tokens: int = ENDLESS,
    *, refused: bool = False,
) -> None:  # fmt: skip
    """Update the tokens of a running call that its hold covers, after the hold grew to these amounts.

    `money` and `budget_tokens` are held in budgets. If the call was `refused`, the hold did not grow, and the
    amounts only decide which limit is `short`. `observed` is changed.
    """
    weighed = observed.weights is not None
    by_quota = covered(observed.counts and not weighed, None, tokens, credits_)
    by_credits = covered(False, observed.rate, tokens, credits_)
    rate = observed.hold_rate or observed.money_rate
    by_budgets = ENDLESS if rate is None else rate.paid(money)
    if observed.counts_budget_tokens:
        by_budgets = min(by_budgets, budget_tokens)
    held = min(by_quota, by_credits, by_budgets)
    observed.short = BY_QUOTA if held == by_quota else BY_CREDITS if held == by_credits else BY_BUDGETS
    if not refused:
        observed.held, observed.quota = held, tokens if weighed else observed.quota


def charge_of(
    service: Service, vectors: Vectors, counts: Sequence[int], cost: int | None, units: int
) -> tuple[int, int, int]:
    """Return the charge of one call: credits, the nano-credits by which they exceed the cost, and units.

    `counts` are its tokens by `KINDS`, `cost` is its cost by the price book. An amount is capped at
    `INTEGER_MAX`, and 0 if the service does not charge in it.
    """
    if is_in_money(service):
        return 0, 0, min(charged(cost or 0, factor_of(service)), INTEGER_MAX)
    if service.meter != CONSUMPTION:
        return 0, 0, units
    if service.one_time:
        return service.credits, 0, units
    if not vectors:
        return min(service.credits * units, INTEGER_MAX), 0, units
    if service.pricing.at_cost is None:
        nano = cost_nano(vectors[0], counts)
    else:
        nano = charged(cost or 0, factor_of(service))
    credits_, over = whole_credits(nano)
    return (credits_, over, units) if credits_ <= INTEGER_MAX else (INTEGER_MAX, 0, units)


# Which of the models that a call names has answered: its price applies. Pure.
#
# Providers answer under longer names than they are asked by, such as `gpt-5.4-2026-03-05`: what begins with a
# name and a separator is that model.

SEPARATORS: Final = frozenset("-@:")


@dataclass(slots=True)
class PriceMatch:
    """A model's price, None if it has none. `stands_in`: it is another model's price, by configuration."""

    model: str
    vector: Vector | None
    stands_in: bool = False


def know_reports(call: CallRequest, vectors: Vectors) -> None:
    """Set that a call's answer `reports` its usage where its media are paid by tokens.

    Without a reported number of tokens such a call costs the amount held. Pictures that are paid by the piece
    have no tokens that are held, or that are charged without a report.
    """
    reports = call.reports
    if units := call.spec.units.likely:
        if vectors and any(unit.startswith(IMAGES) for unit in units):
            reports = any(pictures_by_tokens(vector, units) for vector in vectors)
            if not reports:
                call.output_max = 0
    elif not reports and not all(map(_MADE.issubset, [vector.lacks for vector in vectors])):
        reports = makes(call) != []
    call.reports = reports


def is_model(answered: str, named: str) -> bool:
    """Return whether `answered` is the model `named`, or a version of it; letter case is ignored."""
    size = len(named)
    if answered[:size].lower() != named.lower():
        return False
    return len(answered) == size or answered[size] in SEPARATORS


def answering(  # noqa: PLR0917  # what it names, what answered, what was used and by which prices
    named: Sequence[PriceMatch], answered: str, counts: Sequence[int], tools: Mapping[str, int], tier: str,
    sent: str = "",
) -> PriceMatch:  # fmt: skip
    """Return the price of the model that answered, of the models `named` by a call, the requested one first.

    `answered` is the name in the answer: the longest matching name counts. `sent` is the name that the
    requested model has at the upstream. The call used `counts`, its tokens by `KINDS`, and `tools`, uses by
    name, in the service tier `tier`. If the answer is ambiguous, the requested model counts if it is the
    only one, else the one with the highest cost, so that neither an upstream nor a caller can lower the
    price.
    """
    asked, *others = named
    if not others:
        return asked
    possible = named
    fitting = [price for price in named if is_model(answered, price.model)]
    if fitting:
        longest = max(fitting, key=lambda price: len(price.model))
        if not sent or longest is asked or not is_model(answered, sent):
            return longest
        # The requested model is sent under a name that fits as well: the answer may be of either.
        possible = (asked, longest)
    # Costs in other currencies than the first price's cannot be compared: they are passed over.
    currency, found, most = "", asked, -1
    for price in possible:
        if price.vector is not None and currency in {"", price.vector.currency}:
            currency, cost = price.vector.currency, cost_nano(price.vector, counts, tools, tier)
            if cost > most:
                found, most = price, cost
    return found


@dataclass(slots=True)
class CallPrices:
    """The prices of a call at its admission, `at_ms` (Unix ms): those of all models that it names.

    The hold, the charge and the cost go by these, whatever is set while the call runs. Only a model without a
    price at that time, where money does not decide, has the price of the name which answers.

    `vectors` are the prices that credits or money are charged by, none if tokens do not set the price.
    `named` are the prices in the price book of each model that it names, the requested one first. `hourly` is False
    if none of them changes by the hour.
    """

    vectors: Vectors = UNPRICED
    named: tuple[PriceMatch, ...] = ()
    at_ms: int = 0
    own: bool = False
    hourly: bool = False

    def of_hour(self, ended_ms: int) -> CallPrices:
        """Return the prices by which a call is charged that ended at a time (Unix ms)."""
        named = tuple(
            [replace(price, vector=of_hour(price.vector, self.at_ms, ended_ms)) for price in self.named]
        )
        return CallPrices(self.vectors, named, self.at_ms, self.own)

    def in_currency(self, currency: str) -> tuple[Vector, ...]:
        """Return the prices in `currency` of the models that may answer."""
        vectors: list[Vector] = []
        for price in self.named:
            vector = price.vector
            if vector is not None and vector.currency == currency:
                vectors.append(vector)
        return tuple(vectors)


NO_PRICES: Final = CallPrices()


def of_hour(vector: Vector | None, at_ms: int, ended_ms: int) -> Vector | None:
    """Return the price of a call from `at_ms` to `ended_ms` as it is charged: one with hours at its factor."""
    if vector is None or vector.hours is None:
        return vector
    return at_moment(vector, ended_ms if vector.hours.by_end else at_ms)


def held_price(vector: Vector, at_ms: int, life_ms: int) -> Vector:
    """Return a price with hours as it is held from `at_ms` on for `life_ms`: the dearest if the end decides."""
    if vector.hours is None or not vector.hours.by_end:
        return vector
    return at_factor(vector, dearest_factor(vector.hours, at_ms, at_ms + life_ms))
