"""What people negotiate and subscribe to, on its way to where gateways read it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gateway.core.billing.money import PriceTier
from gateway.core.model import Service
from gateway.counters.admission.catalogue import CachedTerms
from gateway.counters.redis import keys
from gateway.errors import ServiceNotIncluded
from tests.background.backend import Backend, backend_at
from tests.builders import World

TODAY = datetime.now(UTC).date()
NOW_MS = datetime.now(UTC).timestamp() * 1000


def terms(world: World) -> CachedTerms:
    return CachedTerms(world.get(keys.organization_terms(world.caller.organization_id)))


async def model(backend: Backend, name: str) -> int:
    return int(backend.rows("select id from business_model where name = %s", name)[0]["id"])


async def service(backend: Backend, model_name: str, meter: str) -> Service:
    key = f"images-{uuid.uuid4().hex}"
    service_id = await backend.made(
        "services", name=key, key=key, credits=8, service_type="Pay-As-You-Go",
        business_model_id=await model(backend, model_name),
    )  # fmt: skip
    return Service(service_id, key, meter, credits=8)


async def test_overrides_reach_the_gateways_and_survive_a_loss(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        images = await service(backend, "Consumption", "consumption")
        override = await backend.made(
            "organization-services", organization_id=world.caller.organization_id, service_id=images.id,
            negotiated_credits=6,
        )  # fmt: skip
        await backend.push()
        assert terms(world).resolve(images, NOW_MS).credits == 6
        await backend.write(
            "organization-services", "change", override, negotiated_credits=0,
            business_model_id=await model(backend, "Pay-Per-Use"),
            pricing={"tiers": [{"up_to": 9, "unit_price": "0.01"}, {"up_to": None, "unit_price": "0.008"}]},
        )  # fmt: skip
        await backend.push()
        for _ in range(2):
            found = terms(world).resolve(images, NOW_MS)
            assert (found.meter, found.credits) == ("pay_per_use", 0)
            assert found.pricing.tiers == (PriceTier(9, Decimal("0.01")), PriceTier(None, Decimal("0.008")))
            world.client.flushall()
            await backend.verify()


async def test_another_meter_of_a_business_model_reaches_who_negotiated_it(
    valkey: str, migrated: str
) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        images = await service(backend, "Subscription", "subscription")
        special = await backend.made("business-models", name=images.key, meter="consumption")
        await backend.made(
            "organization-services", organization_id=world.caller.organization_id, service_id=images.id,
            negotiated_credits=6, business_model_id=special,
        )  # fmt: skip
        await backend.push()
        assert terms(world).resolve(images, NOW_MS).meter == "consumption"
        await backend.write("business-models", "change", special, meter="pay_per_use")
        await backend.push()
        assert terms(world).resolve(images, NOW_MS).meter == "pay_per_use"


async def test_a_subscription_reaches_the_gateways_with_its_days(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        images = await service(backend, "Subscription", "subscription")
        assert terms(world).resolve(images, NOW_MS).needs_plan
        costs = {"monthly_cost": Decimal(1), "annual_cost": Decimal(10)}
        plan = await backend.made("subscription-plans", name=images.key, feature_access=[images.key], **costs)
        await backend.made(
            "organization-subscriptions", organization_id=world.caller.organization_id, plan_id=plan,
            start_date=TODAY, end_date=TODAY + timedelta(days=30),
        )  # fmt: skip
        await backend.push()
        assert not terms(world).resolve(images, NOW_MS).needs_plan
        with pytest.raises(ServiceNotIncluded):
            terms(world).resolve(images, NOW_MS + 31 * 86_400_000)
        await backend.write("subscription-plans", "change", plan, feature_access=[])
        await backend.push()
        with pytest.raises(ServiceNotIncluded):
            terms(world).resolve(images, NOW_MS)
