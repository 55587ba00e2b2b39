"""What a worker admits on its leases while Redis is away."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import (
    HoldExtension,
    SettleResult,
    Verdict,
)
from gateway.counters.layouts import packing
from gateway.errors import CountersUnavailable, InvalidApiKey
from tests.builders import (
    BY_TOKEN,
    CREDITS,
    ONE_TIME,
    UNITS,
    World,
)
from tests.conftest import ValkeyServer
from tests.counters.lease_stage import LEASE_S, Employ

START = Callable[..., ValkeyServer]


async def test_calls_go_on_within_the_lease_and_then_not(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    request, decision = await worker.reserve(60)
    assert (decision.held_tokens, decision.limit, decision.tokens_remaining) == (60, 100, 40)
    assert await worker.settle(request, 30) is SettleResult.SPOOLED
    assert worker.left == 70
    request, decision = await worker.reserve(50, ceiling=4000)
    assert (decision.held_tokens, decision.tokens_remaining) == (70, 0)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(1)
    await worker.settle(request, 0, charge=False)
    assert (worker.left, worker.allowances.calls, worker.allowances.admitted) == (70, {}, 2)


async def test_what_costs_nothing_is_covered_where_nothing_is_left(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    await worker.reserve(60, ceiling=4000)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(1)
    _, decision = await worker.reserve(0)
    assert decision.held_tokens == 0


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_call_that_could_be_kept_nowhere_is_charged_to_nobody(
    allowing: World, employ: Employ, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    request, _ = await worker.reserve(60)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CountersUnavailable):
        await worker.settle(request, 30)
    assert (worker.left, worker.allowances.calls) == (100, {})


async def test_a_call_that_used_more_than_is_left_is_debt(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    request, _ = await worker.reserve(90)
    await worker.settle(request, 130)
    assert worker.left == -30
    with pytest.raises(CountersUnavailable):
        await worker.reserve(1)


async def test_a_strict_plan_refuses_what_does_not_fit(world: World, employ: Employ) -> None:
    world.plan(1000, on_store_failure="allow", admission="strict")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    with pytest.raises(CountersUnavailable):
        await worker.reserve(101)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(50, ceiling=101)
    _, decision = await worker.reserve(20, ceiling=60)
    assert (decision.held_tokens, decision.bounded) == (60, True)
    _, decision = await worker.reserve(20, ceiling=4000, least=40)
    assert (decision.held_tokens, decision.bounded) == (40, True)


async def test_an_unlimited_plan_is_not_limited(world: World, employ: Employ) -> None:
    world.plan(None, on_store_failure="allow")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    for _ in range(3):
        _, decision = await worker.reserve(10**6)
        assert (decision.held_tokens, decision.limit, decision.tokens_remaining) == (10**6, 0, None)


async def test_credits_come_from_the_lease(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    _, decision = await worker.reserve(service=CREDITS, credits_=15)
    assert decision.credits_remaining == 5
    with pytest.raises(CountersUnavailable):
        await worker.reserve(service=CREDITS, credits_=6)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(service=BY_TOKEN, credits_=400, credits_least=6)
    _, decision = await worker.reserve(service=BY_TOKEN, credits_=400, credits_least=5)
    assert (decision.credits_remaining, decision.held_credits) == (0, 5)


async def test_what_only_redis_knows_the_price_of_is_refused(allowing: World, employ: Employ) -> None:
    allowing.define_organization(cap=10_000_000)
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    priced = replace(UNITS, pricing=ServicePricing((PriceTier(None, Decimal(1)),)))
    for service in (ONE_TIME, priced):
        with pytest.raises(CountersUnavailable):
            await worker.reserve(service=service)
    assert (await worker.reserve(service=UNITS))[1].verdict is Verdict.ADMITTED


async def test_a_key_known_as_revoked_stays_refused(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    allowing.define_key(revoked=True)
    assert (await worker.reserve(1))[1].verdict is Verdict.REVOKED
    await worker.lose()
    with pytest.raises(InvalidApiKey):
        await worker.reserve(1)


async def test_a_lease_is_good_for_a_bounded_time(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    worker.clock.now += LEASE_S - 1
    await worker.reserve(1)
    worker.clock.now += 2
    with pytest.raises(CountersUnavailable):
        await worker.reserve(1)


async def test_an_unverified_redis_is_away_and_a_full_one_is_not(own_valkey: START, employ: Employ) -> None:
    world = World(own_valkey().url)
    world.plan(1000, on_store_failure="allow")
    worker = await employ(world)
    await worker.renew()
    world.client.config_set("maxmemory", 1)
    with pytest.raises(CountersUnavailable, match="OOM"):
        await worker.reserve(1)
    world.client.config_set("maxmemory", 0)
    world.client.flushall()
    assert (await worker.reserve(1))[1].tokens_remaining == 99
    world.client.close()


async def test_a_redis_that_is_verified_and_not_open_yet_is_away(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    allowing.mark(catalogue=packing.CLOSED)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(1)
    await worker.renew()
    request, decision = await worker.reserve(1)
    assert decision.tokens_remaining == 99
    assert await worker.settle(request, 1) is SettleResult.UNKNOWN
    assert len(allowing.late()) == 1


async def test_a_stream_that_outgrows_its_hold_takes_from_the_lease(world: World, employ: Employ) -> None:
    world.plan(10_000, on_store_failure="allow", on_exhausted="cut")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    request, decision = await worker.reserve(100)
    observed = HoldExtension(world.caller, request.request_id, decision.held_tokens, tokens=100)
    worker.counters.outgrown(observed)
    assert (observed.held, observed.exhausted, worker.left) == (356, False, 644)
    observed.tokens = 900
    worker.counters.outgrown(observed)
    assert (observed.held, observed.exhausted, observed.cut, worker.left) == (1000, True, True, 0)
