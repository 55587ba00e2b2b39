"""The sweeper: tenants nobody calls are reset on time, once."""

from __future__ import annotations

import asyncio

from gateway.core.accounts.outbox import EventKind
from tests.background.backend import Backend, backend_at
from tests.builders import World

DAY_MS = 86_400_000


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
        assert await backend.sweeper.turn() == 2
        assert [world.tenant.remaining for world in worlds] == [100, 100, -30]
        await backend.flush()
        assert await backend.sweeper.turn() == 0
        for world in worlds[:2]:
            assert backend.ledger(world.caller.tenant_id)[-1] == (3, "reset", 130, 100)
        quota = backend.rows("select tokens_used, is_blocked, cycle from tenant_quota order by tenant_id")
        assert [tuple(row.values()) for row in quota] == [(0, False, 2), (0, False, 2), (130, True, 1)]


async def test_sweeping_before_the_reset_is_flushed_resets_once(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend, backend_at(valkey, migrated) as other:
        world = await backend.settle_in(100, reset_interval="daily")
        await backend.flush()
        await make_due(backend, world)
        ran = await asyncio.gather(*(one.sweeper.turn() for one in (backend, other, backend, other)))
        assert sum(ran) == 1
        assert [event.kind for event in world.events()] == [EventKind.RESET]


async def test_a_tenant_that_was_called_is_not_reset_again(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100, reset_interval="daily")
        await backend.flush()
        await make_due(backend, world)
        world.reserve(need=1).settle(tokens=1)
        assert await backend.sweeper.turn() == 0
        assert world.tenant.cycle == 2
