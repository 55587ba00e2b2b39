"""The charge of an event: usage that did not pass through the gateway, by the prices of its time. Pure."""

from __future__ import annotations

from gateway.calls.charge import MeteredUse, UseTerms, charge
from gateway.core.accounts.call_facts import NONE, CallFacts
from gateway.core.accounts.weights import Weights
from gateway.core.billing.events import AMOUNT_MAX, ROUTE, EventSettlement, EventUsage, Unacceptable
from gateway.core.billing.money import pack_tiers, spend_micro
from gateway.core.billing.token_prices import token_price
from gateway.core.billing.vector import Vector
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, CallPrices, PriceMatch, is_in_money
from gateway.core.metering.meter import Detail
from gateway.core.model import GENERIC, INTEGER_MAX, Caller, Service


def use_of(
    usage: EventUsage, tenant_id: int, service: Service, price: Vector | None, weights: Weights | None, *,
    in_cycle: bool,
) -> EventSettlement:  # fmt: skip
    """Return the amounts to charge for a usage event, which a customer's own system reported.

    Raise `Unacceptable` if the event lacks a value or a price. `price` is the model's price at the time of
    the event. Tokens count toward a quota only if the quota's cycle of that time still runs (`in_cycle`).
    """
    vectors = _vectors(usage, service, price)
    if service.meter not in {CONSUMPTION, PAY_PER_USE} and not usage.is_counted:
        raise Unacceptable("data.usage", "required: the service counts tokens")
    detail = Detail()
    detail.tools, detail.service_tier = dict(usage.tools), usage.service_tier
    use = MeteredUse(
        True, usage.counts, usage.tokens, usage.units, False, detail, usage.model, ROUTE, GENERIC, 200,
        NONE, used_ms=usage.at_ms,
    )  # fmt: skip
    prices = CallPrices(vectors, (PriceMatch(usage.model, price),), usage.at_ms, own=True, hourly=True)
    terms = UseTerms(Caller(0, tenant_id, 0, 0), "", usage.user, service, prices, weights=weights)
    made = charge(lambda *_: None, usage.at_ms, use, terms)
    moved = made.settlement
    _check_amounts(usage, service, made.cost, moved.credits, moved.units)
    return EventSettlement(
        tenant_id=tenant_id, service_id=service.id, meter=service.meter, one_time=service.one_time,
        tiers=pack_tiers(service.pricing.ladder) if service.meter == PAY_PER_USE else b"", user=usage.user,
        project_id=usage.project_id, counts_tokens=service.counts_tokens and in_cycle, tokens=usage.tokens,
        quota_tokens=usage.tokens if moved.quota_tokens is None else moved.quota_tokens, credits=moved.credits,
        over=moved.over, units=moved.units if service.meter == PAY_PER_USE else 0, money=made.cost,
        facts=CallFacts(*made.facts),
    )  # fmt: skip


def _vectors(usage: EventUsage, service: Service, price: Vector | None) -> tuple[Vector, ...]:
    """Return the token prices for an event; none if the service does not charge by them.

    Raise `Unacceptable` if the event lacks the model or tokens that a price needs, or the price is missing.
    """
    pricing = service.pricing
    by_token = pricing.per_million is not None or pricing.at_cost is not None
    if not by_token or service.meter not in {CONSUMPTION, PAY_PER_USE}:
        return ()
    if not usage.model:
        raise Unacceptable("data.model", "required: the service is priced by the tokens of a model")
    if not usage.is_counted:
        raise Unacceptable("data.usage", "required: the service is priced by tokens")
    vector = price if pricing.per_million is None else token_price(pricing, usage.model)
    if vector is None:
        raise Unacceptable("data.model", "has no price at that time")
    return (vector,)


def _check_amounts(usage: EventUsage, service: Service, cost: int, credits_: int, units: int) -> None:
    """Raise `Unacceptable` if an amount of a usage event exceeds the maximum for one event."""
    name = "data.usage" if usage.is_counted else "data.units"
    most = INTEGER_MAX if is_in_money(service) else AMOUNT_MAX
    if max(usage.tokens, credits_) > AMOUNT_MAX or cost >= INTEGER_MAX or units > most:
        raise Unacceptable(name, "comes to more than one event may; send less at once")
    if service.meter == PAY_PER_USE and spend_micro(service.pricing.ladder, 0, units) > INTEGER_MAX:
        raise Unacceptable(name, "costs more than one event may; send less at once")
