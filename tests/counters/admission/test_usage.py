"""What a key holder is told of Pay-Per-Use: what the month came to, and what the cap leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.counters.admission.usage import usage
from tests.builders import UNITS, World, driven
from tests.counters.conftest import Connect

PRICED = replace(UNITS, pricing=ServicePricing((PriceTier(None, Decimal("0.25")),)))


async def spends(connect: Connect, world: World) -> list[dict[str, Any]]:
    wire = await connect(world.url)
    told = json.loads(await driven(usage(wire, world.caller)))
    return [limit for limit in told["limits"] if limit["name"] == "spend_cap"]


async def test_what_was_spent_of_the_cap_is_told(connect: Connect, world: World) -> None:
    assert await spends(connect, world) == []
    world.reserve(service=PRICED).settle(units=6)
    [told] = await spends(connect, world)
    assert (told["scope"], told["used"], told["limit"], told["remaining"]) == (
        "organization", "1.5", None, None,
    )  # fmt: skip
    assert told["reset_at"].endswith("-01T00:00:00.000Z")
    world.define_organization(cap=2_000_000)
    world.reserve(service=PRICED, units=1)
    [told] = await spends(connect, world)
    assert (told["used"], told["limit"], told["remaining"]) == ("1.75", "2", "0.25")
    # What another month came to is no use of this one.
    world.put_organization(month=world.organization.month - 1, spend_held=0)
    [told] = await spends(connect, world)
    assert (told["used"], told["remaining"]) == ("0", "2")
