"""The sweeper: tenants nobody calls are reset on time, once."""

from __future__ import annotations

import asyncio

import pytest

from gateway.background.timed.sweeper import Sweeper
from gateway.core.accounts.ledger import EventKind
from gateway.errors import CountersUnavailable
from tests.background.backend import Backend, backend_at
from tests.builders import World

DAY_MS = 86_400_000


class Due:
    """Tenants the database thinks due."""

    def __init__(self, *tenants: tuple[int, int]) -> None:
        self.tenants = tenants

    async def due(self, count: int) -> list[tuple[int, int]]:
        return list(self.tenants)[:count]


class Target:
    """Counters that know who really is."""

    def __init__(self, *due: int) -> None:
        self.due = due
        self.swept: list[tuple[int, int]] = []

    async def sweep(self, tenant_id: int, organization_id: int) -> bool:
        self.swept.append((tenant_id, organization_id))
        return tenant_id in self.due


async def test_the_counters_decide_who_is_due() -> None:
    target = Target(2, 3)
    assert await Sweeper(Due((1, 10), (2, 20), (3, 30)), target).sweep() == 2
    assert target.swept == [(1, 10), (2, 20), (3, 30)]


async def test_one_that_cannot_be_reset_keeps_no_other_from_it() -> None:
    class Away(Target):
        async def sweep(self, tenant_id: int, organization_id: int) -> bool:
            if tenant_id == 1:
                raise CountersUnavailable
            return await super().sweep(tenant_id, organization_id)

    target = Away(1, 2)
    with pytest.raises(CountersUnavailable):
        await Sweeper(Due((1, 10), (2, 20)), target).sweep()
    assert target.swept == [(2, 20)]


async def make_due(backend: Backend, *worlds: World) -> None:
    """As on the next morning: the boundary is past, in the counters and in the flushed quota."""
    for world in worlds:
        boundary = world.now_ms() // DAY_MS * DAY_MS
        world.put_tenant(next_reset=boundary)
        backend.rows(
            "update tenant_quota set next_reset_at = to_timestamp(%s) where tenant_id = %s returning 1",
            boundary / 1000,
            world.caller.tenant_id,
        )


async def test_idle_tenants_are_reset_with_a_row(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        worlds = [await backend.settle_in(100, reset_interval="daily") for _ in range(3)]
        for world in worlds:
            world.reserve(need=1).settle(tokens=130)
        await backend.flush()
        await make_due(backend, *worlds[:2])
        assert await backend.sweeper.sweep() == 2
        assert [world.tenant.remaining for world in worlds] == [100, 100, -30]
        await backend.flush()
        assert await backend.sweeper.sweep() == 0
        for world in worlds[:2]:
            assert backend.ledger(world.caller.tenant_id)[-1] == (3, "reset", 130, 100)
        quota = backend.rows("select tokens_used, is_blocked, cycle from tenant_quota order by tenant_id")
        assert [tuple(row.values()) for row in quota] == [(0, False, 2), (0, False, 2), (130, True, 1)]


async def test_sweeping_before_the_reset_is_flushed_resets_once(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend, backend_at(valkey, migrated) as other:
        world = await backend.settle_in(100, reset_interval="daily")
        await backend.flush()
        await make_due(backend, world)
        ran = await asyncio.gather(*(one.sweeper.sweep() for one in (backend, other, backend, other)))
        assert sum(ran) == 1
        assert [event.kind for event in world.events()] == [EventKind.RESET]


async def test_a_tenant_that_was_called_is_not_reset_again(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100, reset_interval="daily")
        await backend.flush()
        await make_due(backend, world)
        world.reserve(need=1).settle(tokens=1)
        assert await backend.sweeper.sweep() == 0
        assert world.tenant.cycle == 2
