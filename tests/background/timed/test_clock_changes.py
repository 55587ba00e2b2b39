"""Clocks that change: tenants are told in time, each once, however long nobody looked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gateway.core.accounts.budgets import bounds
from gateway.core.times import HOUR_MS, ZoneOffset, clock_of
from gateway.counters.redis.keys import partition_of
from gateway.run.timed_loops import clock_changes
from persistence.keeper.definitions import ClockReports
from tests.background.backend import Backend, backend_at
from tests.builders import World

BERLIN = "Europe/Berlin"
DAY_MS = 24 * HOUR_MS


def told(backend: Backend) -> ClockReports:
    return ClockReports(backend.engine, partition_of)


def clock(world: World) -> ZoneOffset:
    tenant = world.tenant
    return ZoneOffset(tenant.offset, tenant.turns_at, tenant.offset_after)


def waiting(backend: Backend) -> list[str]:
    query = "select account from control_write where state = 'pending' order by position"
    return [row["account"] for row in backend.rows(query)]


async def in_zone(backend: Backend, count: int = 1, **plan: Any) -> list[World]:
    return [
        await backend.settle_in(100, reset_interval="daily", time_zone=BERLIN, **plan) for _ in range(count)
    ]


async def test_a_keeper_that_was_away_over_a_change_of_clocks_tells_of_it(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        [world] = await in_zone(backend)
        now, right = world.now_ms(), clock(world)
        assert right == clock_of(BERLIN, now)
        boundary = bounds("day", BERLIN, 1, now)[1]
        assert world.tenant.next_reset == boundary
        # As half a year ago: clocks were others, which would have changed twice since.
        stale = ZoneOffset(right.offset + HOUR_MS, now - 90 * DAY_MS, right.offset - HOUR_MS)
        late = boundary + right.offset - stale.offset_after
        world.put_tenant(**stale._asdict(), next_reset=late)
        changes = clock_changes(told(backend), lambda: datetime.now(UTC))
        assert await changes.turn() == 1
        assert await backend.push() == 0
        assert (clock(world), world.tenant.next_reset) == (right, boundary)
        assert (world.tenant.cycle, world.tenant.remaining) == (1, 100)


async def test_a_reset_that_stale_clocks_delayed_runs_when_they_are_told(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        [world] = await in_zone(backend)
        world.reserve(need=1).settle(tokens=130)
        now, right = world.now_ms(), clock(world)
        begun = bounds("day", BERLIN, 1, now)[0]
        # By these clocks today begins in an hour.
        stale = ZoneOffset(begun + right.offset - now - HOUR_MS)
        world.put_tenant(**stale._asdict(), next_reset=now + HOUR_MS)
        assert world.sweep().code == 2
        assert await clock_changes(told(backend), lambda: datetime.now(UTC)).turn() == 1
        assert await backend.push() == 0
        assert world.tenant.next_reset == begun
        assert world.sweep().code == 1
        assert (world.tenant.cycle, world.tenant.remaining) == (2, 100)
        assert world.tenant.next_reset == bounds("day", BERLIN, 1, now)[1]


async def test_all_tenants_of_a_zone_are_told_once_some_at_a_time(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        worlds = await in_zone(backend, 3)
        await backend.settle_in(100, reset_interval="daily", time_zone="Asia/Tokyo")
        await backend.settle_in(100, reset_interval="daily")
        clocks, winter = told(backend), ZoneOffset(HOUR_MS, 5, 2 * HOUR_MS)
        accounts = [f"tenant:{world.caller.tenant_id}" for world in worlds]
        assert await clocks.zones() == ["Asia/Tokyo", BERLIN]
        assert [await clocks.tell(BERLIN, winter, 2) for _ in range(3)] == [2, 1, 0]
        assert waiting(backend) == accounts
        assert await backend.push() == 0
        # What changes begins with the first tenant, also where not all were told of what was before.
        assert await clocks.tell(BERLIN, ZoneOffset(1, 6, 0), 1) == 1
        assert [await clocks.tell(BERLIN, ZoneOffset(0, 7, 1), 3) for _ in range(3)] == [3, 0, 0]
        assert waiting(backend) == [accounts[0], *accounts]


async def test_who_follows_another_plan_or_is_gone_is_not_told(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        moved, gone, here = await in_zone(backend, 3)
        plan = await backend.made("token-plans", name="Tokyo", total_amount=5, time_zone="Asia/Tokyo")
        await backend.write("tenant-quotas", "change", moved.caller.tenant_id, plan_id=plan)
        await backend.write("api-keys", "revoke", gone.caller.key_id)
        await backend.write("tenants", "delete", gone.caller.tenant_id)
        assert await backend.push() == 0
        assert await told(backend).tell(BERLIN, ZoneOffset(1, 2, 3), 10) == 1
        assert waiting(backend) == [f"tenant:{here.caller.tenant_id}"]


async def test_two_keepers_tell_nobody_twice(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend, backend_at(valkey, migrated) as other:
        await in_zone(backend, 2)
        one, two, winter = told(backend), told(other), ZoneOffset(1, 2, 3)
        assert await one.tell(BERLIN, winter, 1) == 1
        assert await two.tell(BERLIN, winter, 1) == 1
        assert [await two.tell(BERLIN, winter, 1), await one.tell(BERLIN, winter, 1)] == [0, 0]
        assert len(waiting(backend)) == 2


async def test_a_tenant_that_is_written_anew_has_its_days_again(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(
            100, reset_interval="monthly", time_zone="Pacific/Chatham", anchor_day=31, overage_policy="carry"
        )
        world.reserve(need=1).settle(tokens=130)
        await backend.flush()
        before = world.tenant
        backend.client().flushall()
        world.load_library()
        await backend.verify()
        await backend.push()
        after = world.tenant
        names = (
            "anchor_day",
            "offset",
            "turns_at",
            "offset_after",
            "next_reset",
            "cycle",
            "remaining",
            "seq",
        )
        assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
        assert after.next_reset == bounds("month", "Pacific/Chatham", 31, world.now_ms())[1]
