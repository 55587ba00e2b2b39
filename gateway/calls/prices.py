"""The prices of a use, found before it begins; a use that lacks a required price is refused.

`rating.py` computes the charge by the same prices when the use has ended.
"""

from __future__ import annotations

from gateway.calls.ports import CallPorts, DirectoryPort
from gateway.core.accounts.budgets import MONEY
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.upstream_jobs import HOLD_MS_MAX
from gateway.core.billing.money import ServicePricing
from gateway.core.billing.service_tiers import lacks_tier
from gateway.core.billing.vector import CACHE_HOUR
from gateway.core.calls.call import CallRequest
from gateway.core.calls.routes import ModelTarget
from gateway.core.calls.storage import STORED_UNITS
from gateway.core.calls.tariff import (
    UNPRICED,
    CallPrices,
    PriceMatch,
    Vectors,
    held_price,
    know_reports,
    unpriced_part,
    vectors_of,
)
from gateway.core.calls.tool_uses import find_tool, unpriced_tools
from gateway.core.calls.use_request import CALL_LIFE_MS
from gateway.core.families.registry import SHAPES
from gateway.core.model import Caller, Service
from gateway.errors import ModelNotPriced


def prices_of(  # noqa: PLR0917  # whose call it is, and what it takes from
    ports: CallPorts, caller: Caller, service: Service, call: CallRequest, budgets: CallBudgets | None,
    life_ms: int = CALL_LIFE_MS,
) -> CallPrices:  # fmt: skip
    """Return the prices of a call that takes from these budgets; raise `ModelNotPriced` if one is missing.

    If the call is charged in money, or a budget in money applies, every price must be in the organization's
    currency. `life_ms` is how long its hold may last.
    """
    directory, pricing = ports.directory, service.pricing
    asking, by_cost = money_budgets(budgets), pricing.at_cost is not None
    own = by_cost or asking is not None
    prices = CallPrices(UNPRICED, (), ports.refusals.now_ms(), own)
    if call.spec.model:
        life_ms = HOLD_MS_MAX if call.spec.background else life_ms
        prices.named = named_prices(directory, caller, call, own, prices.at_ms, life_ms)
        for price in prices.named:
            if price.vector is not None and price.vector.hours is not None:
                prices.hourly = True
    if own:
        _check_currency(directory, caller, prices, asking, by_cost)
    prices.vectors = charging_prices(service, call, prices.named)
    if ports.refuse_unpriced or asking is not None:
        check_known(prices, call, asking)
    if ports.refuse_unpriced or own:
        know_reports(call, check_parts(call, prices.named, asking, by_cost))
    elif call.spec.units.likely:
        know_reports(call, [price.vector for price in prices.named if price.vector is not None])
    return prices


def money_budgets(budgets: CallBudgets | None) -> CallBudgets | None:
    """Return the budgets of a call if one of them limits money."""
    return budgets if budgets is not None and MONEY in budgets.enforced else None


def check_parts(
    call: CallRequest, named: tuple[PriceMatch, ...], asking: CallBudgets | None, by_cost: bool
) -> Vectors:
    """Return the known prices of a call; raise `ModelNotPriced` if a tool, tier or medium has none.

    `named` are the prices of the models that the call names.
    """
    vectors = [price.vector for price in named if price.vector is not None]
    tools, makers = unpriced_tools(call, vectors), None
    shape = SHAPES.get(call.meter) if call.models_beside else None
    if shape is not None and shape.live is not None:  # the others write transcripts
        makers = [price.vector for price in named[: len(call.aim.targets) or 1] if price.vector is not None]
    part: tuple[str, str] | None
    right = ""
    later = STORED_UNITS.get(tools[0]) if tools and call.spec.units.likely else None
    if later is not None:
        part = later, "ttl" if CACHE_HOUR in tools else ""
        right = " A key that no budget of money limits may ask for it." if asking else ""
    elif tools:
        place, name = ("tools", "") if call.spec.units.likely else find_tool(call, tools[0])
        part = f"the tool {tools[0]}", place
        right = f" Leave it out, or add tools.{name} to that price." if name else ""
    else:
        part = unpriced_part(call, vectors, makers)
        if part is None and call.spec.attempts:
            part = _unpriced_attempt(call, named)
    if part is not None:
        models = " or ".join([price.model for price in named]) or ("" if later else "any model")
        what = f"{part[0]} of {models}" if models else part[0]
        raise ModelNotPriced(_unpriced(what, asking, by_cost) + right, param=part[1] or None)
    return vectors


def _unpriced_attempt(call: CallRequest, named: tuple[PriceMatch, ...]) -> tuple[str, str] | None:
    """Return the service tier of an attempt that its model has no price for, in words, and its field."""
    vectors = {price.model: price.vector for price in named}
    for attempt in call.spec.attempts:
        vector = vectors.get(attempt.model)
        if attempt.tier and vector is not None and lacks_tier(vector, attempt.tier):
            return f"the service tier {attempt.tier}", "fallbacks"
    return None


def named_prices(  # noqa: PLR0917  # as `book_price`
    directory: DirectoryPort, caller: Caller, call: CallRequest, own: bool, at_ms: int, life_ms: int = 0
) -> tuple[PriceMatch, ...]:
    """Return the prices of all models of a call at a time (Unix ms); `own` excludes foreign currencies.

    A hold that lasts for `life_ms` is taken at these prices.
    """
    if not call.aim.targets and not call.models_beside:
        return (book_price(directory, caller, call.spec.model, own, at_ms, call.aim.upstream, life_ms),)
    models = [*dict.fromkeys((call.spec.model, *call.models_beside))]
    price_matches: tuple[PriceMatch, ...] = ()
    if call.aim.targets:
        theirs = [target.model for target in call.aim.targets]
        price_matches = tuple(
            [
                _target_price(directory, caller, call, target, own, at_ms, life_ms)
                for target in call.aim.targets
            ]
        )
        models = [model for model in models[1:] if model not in theirs]
    return price_matches + tuple([
        book_price(directory, caller, model, own, at_ms, call.aim.upstream, life_ms) for model in models
    ])  # fmt: skip


def charging_prices(service: Service, call: CallRequest, named: tuple[PriceMatch, ...]) -> Vectors:
    """Return the prices that the service charges for this call; `named` are the prices of its models."""
    pricing = service.pricing
    if pricing.at_cost is None and pricing.per_million is None and not pricing.tiers:
        return UNPRICED
    asked = [price.model for price in named] if call.aim.targets else [call.spec.model, *call.models_beside]
    if call.aim.targets and pricing.per_million is not None:
        asked = [_name_priced(pricing, call, model) for model in asked]
    return vectors_of(
        service, asked, {price.model: price.vector for price in named}.get, apart=len(call.aim.targets)
    )


def _check_currency(
    directory: DirectoryPort, caller: Caller, prices: CallPrices, budgets: CallBudgets | None, by_cost: bool
) -> None:
    """Raise `ModelNotPriced` if a model's only price is in a foreign currency, without an exchange rate.

    The message names what requires a price: the service's charge if `by_cost`, otherwise a budget in money.
    """
    for price in prices.named:
        if price.vector is None:
            other = directory.price(caller, price.model, prices.at_ms, False) or directory.price_as(
                caller, price.model, prices.at_ms, False
            )
            if other is not None:
                pays, why = directory.pays_in(caller), "and its service is charged what it costs"
                if budgets is not None and not by_cost:
                    why = f'so the budget "{budgets.refusing(MONEY)}" cannot be enforced'
                raise ModelNotPriced(
                    f"The model {price.model} is priced in {other.currency}, and the organization pays in"
                    f" {pays}. There is no exchange rate from {other.currency} to {pays}, {why}."
                )


def check_known(prices: CallPrices, call: CallRequest, budgets: CallBudgets | None = None) -> None:
    """Raise `ModelNotPriced` if a model that may answer has no price; the message names the budget in money.

    Under a budget in money a call must name its model: the upstream's default model has no known price.
    """
    # `check_parts` says what has no price of a call without a model that its upstream bills later.
    stores = call.spec.units.likely and not STORED_UNITS.keys().isdisjoint(call.spec.units.likely)
    if budgets is not None and not call.spec.model and call.meter in SHAPES and not stores:
        name = budgets.refusing(MONEY)
        raise ModelNotPriced(f"The budget {name} limits what calls cost, and this one names no model.")
    for price in prices.named:
        if price.vector is None:
            raise ModelNotPriced(_unpriced(f"the model {price.model}{call.chosen_by(price.model)}", budgets))


def _unpriced(what: str, budgets: CallBudgets | None, by_cost: bool = False) -> str:
    """Return the message for a call with `what` (a model, tool or medium) that has no price.

    It says why a price is required: the service charges `by_cost`, a budget limits money, or a setting says
    so.
    """
    if by_cost:
        return f"No price for {what}, and its service is charged what it costs."
    if budgets is None:
        return f"No price for {what}, and calls without one are refused."
    name = budgets.refusing(MONEY)
    return f'No {budgets.currency} price for {what}, so the budget "{name}" cannot be enforced.'


def book_price(  # noqa: PLR0917  # as `named_prices`
    directory: DirectoryPort, caller: Caller, model: str, own: bool, at_ms: int, upstream: str = "",
    life_ms: int = 0,
) -> PriceMatch:  # fmt: skip
    """Return a model's price at a time (Unix ms); without one, the price of its configured substitute.

    With `own`, only prices in the organization's currency are found.
    """
    price = directory.price(caller, model, at_ms, own, upstream)
    stands_in = price is None
    if price is None:
        price = directory.price_as(caller, model, at_ms, own, upstream)
        if price is None:
            return PriceMatch(model, None)
    if price.hours is not None:
        price = held_price(price, at_ms, life_ms)
    return PriceMatch(model, price, stands_in)


def _target_price(  # noqa: PLR0917  # as `named_prices`
    directory: DirectoryPort,
    caller: Caller,
    call: CallRequest,
    target: ModelTarget,
    own: bool,
    at_ms: int,
    life_ms: int,
) -> PriceMatch:
    """Return a fallback target's price by the model's name at the upstream, else by the requested name."""
    for stands_in in (False, True):
        look_up = directory.price_as if stands_in else directory.price
        for name in dict.fromkeys((target.model, call.spec.model)):
            price = look_up(caller, name, at_ms, own, target.upstream)
            if price is not None:
                return PriceMatch(target.model, held_price(price, at_ms, life_ms), stands_in)
    return PriceMatch(target.model, None)


def _name_priced(pricing: ServicePricing, call: CallRequest, model: str) -> str:
    """Return the name of a target's `model` in prices: the requested name if it alone has a price."""
    of_own = pricing.per_million or {}
    return call.spec.model if call.spec.model in of_own and model not in of_own else model
