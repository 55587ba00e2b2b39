"""Tiers and one-time payments beyond one call: reclaimed, late, and after everything in Redis is lost."""

from __future__ import annotations

import uuid
from dataclasses import replace
from decimal import Decimal

from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import Service
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from tests.background.backend import Backend
from tests.builders import ONE_TIME, UNITS, World

TIERS = ServicePricing((PriceTier(10, Decimal("0.0010")), PriceTier(None, Decimal("0.0008"))))


async def known(backend: Backend, service: Service) -> Service:
    """The same service under an id that PostgreSQL knows."""
    name = f"service-{uuid.uuid4().hex}"
    (model,) = backend.rows("select id from business_model where name = 'Consumption'")
    kind = "One-Time" if service.one_time else "Pay-As-You-Go"
    made = await backend.made(
        "services", name=name, key=name, credits=0, service_type=kind, business_model_id=model["id"]
    )
    return replace(service, id=made)


def kept(world: World, service: Service) -> states.ActivationState:
    name = keys.activation(world.p, world.caller.organization_id, service.id)
    return states.unpack(states.ActivationState, world.get(name))


async def test_after_a_loss_nothing_is_paid_twice_and_no_tier_begins_again(backend: Backend) -> None:
    world = await backend.settle_in(100)
    once, tiered, other = [
        await known(backend, one) for one in (ONE_TIME, replace(UNITS, pricing=TIERS), UNITS)
    ]
    world.grant("credits", 100)
    world.reserve(service=once, credits_=50).settle(credits=50)
    for units in (7, 5):
        world.reserve(service=tiered, units=units).settle(units=units)
    await backend.flush()
    before = [kept(world, one) for one in (once, tiered)]
    world.client.flushall()
    await backend.verify()
    paid = replace(before[0], price=0, month=before[1].month)
    assert [kept(world, one) for one in (once, tiered)] == [paid, before[1]]
    assert world.get(keys.activation(world.p, world.caller.organization_id, other.id)) == b""
    world.reserve(service=once, credits_=50).settle(credits=50)
    world.reserve(service=tiered, units=1).settle(units=1)
    assert (world.organization.balance, world.organization.spent) == (50, 12_400)
