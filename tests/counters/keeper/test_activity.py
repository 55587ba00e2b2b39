"""What tenants did lately is kept over all gateways, forgotten by itself, and never waited for."""

from __future__ import annotations

import pytest

from gateway.core.accounts.refusals import busiest
from gateway.counters.keeper.status import BUCKET_S, KEPT_S, TENANTS_TOLD_MAX, Activity
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.builders import World
from tests.counters.conftest import Connect

NOW = 1_800_000_002.0


async def test_what_gateways_count_adds_up_and_grows_old(world: World, connect: Connect) -> None:
    now = NOW
    one, other = [Activity(await connect(world.url), lambda: now) for _ in range(2)]
    await one.publish({(7, "requests"): 3, (7, "tokens"): 300})
    now += BUCKET_S
    await other.publish({(7, "requests"): 2, (0, "invalid_api_key"): 1})
    counts, covered_s = await one.read(10)
    everybody, [busy] = busiest(counts, 5)
    assert (busy.tenant_id, busy.requests, busy.tokens) == (7, 5, 300)
    assert everybody.refused == {"invalid_api_key": 1}
    assert 10 <= covered_s < 10 + BUCKET_S
    now += 60
    assert (await one.read(60))[0]
    assert (await one.read(30))[0] == []


async def test_redis_forgets_it_by_itself(world: World, connect: Connect) -> None:
    activity = Activity(await connect(world.url), lambda: NOW)
    await activity.publish({(7, "requests"): 1})
    name = keys.activity(int(NOW) // BUCKET_S)
    assert 0 < world.client.ttl(name) <= KEPT_S


async def test_one_publication_is_bounded(world: World, connect: Connect) -> None:
    activity = Activity(await connect(world.url), lambda: NOW)
    await activity.publish({(tenant, "requests"): 1 for tenant in range(1, 4 * TENANTS_TOLD_MAX)})
    counts, _ = await activity.read(5)
    assert len(counts) == TENANTS_TOLD_MAX + 1
    assert busiest(counts, 1)[0].requests == 4 * TENANTS_TOLD_MAX - 1


async def test_without_redis_it_is_said(world: World, connect: Connect) -> None:
    wire = await connect(world.url)
    activity = Activity(wire, lambda: NOW)
    await wire.close()
    with pytest.raises(CountersUnavailable):
        await activity.publish({(7, "requests"): 1})
    with pytest.raises(CountersUnavailable):
        await activity.read(5)
