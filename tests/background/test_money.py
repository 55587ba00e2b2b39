"""Use that is charged what it costs: rows, tiers and invoices in money, reclaimed, late and after a loss."""

from __future__ import annotations

import csv
import io
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import ceil

from gateway.core.billing.money import CostMarkup, PriceTier, ServicePricing
from gateway.core.billing.price_book import TokenRate
from gateway.core.model import INTEGER_MAX, Service
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from persistence.billing.invoice_usage import InvoiceUsage
from tests.background.backend import Backend
from tests.builders import UNITS, World
from tests.persistence.scenario import broken

AT_COST = replace(UNITS, pricing=ServicePricing(at_cost=CostMarkup(Decimal("1.2"))))
TIERS = ServicePricing((PriceTier(2, Decimal(1)), PriceTier(None, Decimal("0.5"))))


async def known(backend: Backend, service: Service = AT_COST) -> Service:
    """The same service under an id that PostgreSQL knows."""
    name = f"service-{uuid.uuid4().hex}"
    (model,) = backend.rows("select id from business_model where name = 'Pay-Per-Use'")
    made = await backend.made(
        "services", name=name, key=name, credits=0, service_type="Pay-As-You-Go",
        business_model_id=model["id"],
    )  # fmt: skip
    return replace(service, id=made)


def kept(world: World, service: Service, *, in_money: bool = True) -> states.ActivationState:
    name = keys.activation(world.p, world.caller.organization_id, service.id, in_money=in_money)
    raw = world.get(name)
    return states.unpack(states.ActivationState, raw) if raw else states.ActivationState()


def use(world: World, service: Service, units: int) -> None:
    world.reserve(service=service, units=units).settle(units=units)


async def test_what_calls_cost_is_kept_to_the_billionth(backend: Backend) -> None:
    world = await backend.settle_in(None)
    service = await known(backend)
    costs = [424_518_000, 1, 0, 999, 123_456_789]
    for nano in costs:
        use(world, service, nano)
    await backend.flush()
    rows = backend.rows("select usage_amount, in_money from feature_usage order by seq")
    assert [(row["usage_amount"], row["in_money"]) for row in rows] == [(nano, True) for nano in costs]
    (tier,) = backend.rows("select unit_price, quantity from usage_tier")
    assert (tier["unit_price"], tier["quantity"]) == (Decimal("0.000000001"), sum(costs))
    # The month's spend is rounded up once to a millionth, however its calls are cut.
    assert world.organization.spent == ceil(Fraction(sum(costs), 1000))
    assert [row["units"] for row in backend.rows("select units from call")] == [1] * 5
    assert await broken(backend.database) == []


async def test_units_and_money_of_one_service_are_counted_apart(backend: Backend) -> None:
    world = await backend.settle_in(None)
    service = await known(backend)
    tiered = replace(service, pricing=TIERS)
    use(world, tiered, 1)
    use(world, service, 10**9)
    use(world, tiered, 2)
    await backend.flush()
    before = kept(world, service), kept(world, service, in_money=False)
    assert [one.quantity for one in before] == [10**9, 3]
    assert world.organization.spent == 1_000_000 + 1_000_000 + 1_000_000 + 500_000
    world.client.flushall()
    await backend.verify()
    assert (kept(world, service), kept(world, service, in_money=False)) == before
    use(world, service, 1)
    use(world, tiered, 1)
    assert world.organization.spent == 3_500_000 + 1 + 500_000
    await backend.flush()
    assert await broken(backend.database) == []


async def test_money_of_a_small_unit_goes_beyond_what_one_number_of_a_call_holds(backend: Backend) -> None:
    world = await backend.settle_in(None)
    service = await known(backend)
    uses = (7 * 10**15 - 1, 7 * 10**15 - 1, 10**15 + 1)
    for units in uses:
        use(world, service, units)
        await backend.flush()
    assert sum(uses) > INTEGER_MAX
    before = kept(world, service)
    assert world.organization.spent == ceil(Fraction(sum(uses), 1000))
    (day,) = backend.rows("select usage_amount, requests from usage_daily")
    assert (day["usage_amount"], day["requests"]) == (sum(uses), 3)
    world.client.flushall()
    await backend.verify()
    assert kept(world, service) == before
    use(world, service, 1001)
    assert world.organization.spent == ceil(Fraction(sum(uses) + 1001, 1000))
    await backend.flush()
    assert await broken(backend.database) == []


async def test_a_call_that_died_costs_what_was_seen_of_it(backend: Backend) -> None:
    world = await backend.settle_in(None)
    service = await known(backend)
    call = world.reserve(service=service, units=5_000_000, ttl_ms=1)
    rate = TokenRate(10, 2 * 10**9, 5 * 10**9, factor=(6, 5), in_money=True)
    assert call.priced(14, 5, rate) == (0, 0, 0)
    world.client.zadd(keys.deadlines(world.p), {call.id: 1})
    for _ in range(2):
        await backend.reclaimer.sweep()
    seen = (10 * 2_000 + 4 * 5_000) * 6 // 5
    assert (kept(world, service).quantity, kept(world, service).held) == (seen, 0)
    call.settle(units=70_000)  # after all: it is made good to the billionth
    for _ in range(3):
        await backend.flush()
        await backend.late_settlements.drain()
    await backend.flush()
    assert kept(world, service).quantity == 70_000
    (row,) = backend.rows("select sum(usage_amount) as units, count(*) as n from feature_usage")
    assert (row["units"], row["n"]) == (70_000, 2)
    assert await broken(backend.database) == []


async def test_an_invoice_has_one_line_whose_price_is_exact(backend: Backend) -> None:
    world = await backend.settle_in(None)
    service = await known(backend)
    for nano in (424_518_000, 999, 12_345_678_901):
        use(world, service, nano)
    use(world, replace(service, pricing=TIERS), 3)
    await backend.flush()
    today = datetime.now(UTC).date()
    made = await backend.made(
        "invoices", organization_id=world.caller.organization_id,
        period_start=today.replace(day=1), period_end=today + timedelta(days=1),
    )  # fmt: skip
    rows = backend.rows(
        "select description, quantity, unit_price, amount from invoice_line"
        " where invoice_id = %s and kind = 'usage' order by position",
        made,
    )
    lines = [(row["description"].split(", ")[2:], row["quantity"], row["unit_price"]) for row in rows]
    assert lines == [
        (["units 1 to 2"], 2, Decimal(1)),
        (["units 3 to 3"], 1, Decimal("0.5")),
        (["at cost"], 1, Decimal("12.770197900")),
    ]
    assert rows[-1]["amount"] == Decimal("12.77")
    today = datetime.now(UTC).date()
    pieces = [piece async for piece in InvoiceUsage(backend.engine).csv(made, today)]
    behind = csv.DictReader(io.StringIO(b"".join(pieces).decode()))
    assert [(row["kind"], Decimal(row["quantity"])) for row in behind if row["request_id"]] == [
        ("money", Decimal("0.424518")), ("money", Decimal("0.000000999")),
        ("money", Decimal("12.345678901")), ("units", 2), ("units", 1),
    ]  # fmt: skip
