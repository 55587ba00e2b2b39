"""The counters in memory behave as the real ones do, as far as the Admin API can tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from gateway.admin.ports import CountersReader
from gateway.background.timed.pusher import Pusher
from gateway.background.verifying.verifier import Verifier
from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Row
from gateway.core.accounts.plans import LiveQuota
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of
from persistence import engine as engines
from persistence.keeper.definitions import Pushes
from persistence.keeper.verification import LedgerReader
from persistence.store import Store
from tests.admin.conftest import MemoryCounters
from tests.waiting import eventually

ACTOR = Actor("builtin:admin", "admin")


@dataclass
class Door:
    """The store and one kind of counters."""

    store: Store
    pusher: Pusher
    counters: CountersReader

    async def write(self, resource: str, verb: str, row_id: int | None = None, **values: object) -> Row:
        command = Command(resource, verb, ACTOR, "r", lambda _: {}, row_id, values)
        written = await self.store.write(command)
        assert isinstance(written, CommittedWrite)
        assert not await self.pusher.push([intent.account for intent in written.intents])
        return written.row

    async def quota(self, tenant: Row) -> LiveQuota:
        tenant_id, organization_id = int(str(tenant["id"])), int(str(tenant["organization_id"]))
        found = await self.counters.peek_tenants([(partition_of(organization_id), tenant_id)])
        quota = found[tenant_id]
        assert quota is not None
        return quota


@pytest.fixture(params=["memory", "real"])
async def door(request: pytest.FixtureRequest, keeper_database: str) -> AsyncIterator[Door]:
    engine = engines.create(keeper_database)
    store = Store(engine, partition_of)
    if request.param == "memory":
        memory = MemoryCounters(keeper_database)
        yield Door(store, memory, memory)
    else:
        wire = RedisConnection(parse_url(request.getfixturevalue("valkey")), time.monotonic)
        wire.start()
        counters = KeeperCounters(wire)
        verifier = Verifier(LedgerReader(engine, partition_of), counters)
        verifying = asyncio.create_task(verifier.run())
        await eventually(lambda: verifier.ready)
        yield Door(store, Pusher(Pushes(engine), counters), counters)
        verifying.cancel()
        await wire.close()
    await engine.dispose()


async def tenant_with(door: Door, total: int | None) -> Row:
    plan = await door.write("token-plans", "create", name="p", total_amount=total, reset_interval="none")
    return await door.write("tenants", "create", name="web", plan_id=plan["id"])


async def test_a_plan_opens_the_account(door: Door) -> None:
    quota = await door.quota(await tenant_with(door, 1000))
    assert (quota.tokens_remaining, quota.tokens_used, quota.seq, quota.is_blocked) == (1000, 0, 1, False)


async def test_recharge_adjust_and_reset(door: Door) -> None:
    tenant = await tenant_with(door, 100)
    moves = [
        ("recharge", {"amount": 50}, 150),
        ("adjust", {"amount": 30, "direction": "OUT", "reason": "x"}, 120),
        ("adjust", {"amount": 1, "direction": "IN", "reason": "x"}, 121),
        ("reset", {}, 100),
    ]
    for seq, (verb, values, remaining) in enumerate(moves, start=2):
        await door.write("tenants", verb, int(str(tenant["id"])), **values)
        quota = await door.quota(tenant)
        assert (quota.tokens_remaining, quota.seq) == (remaining, seq)


async def test_blocked_by_hand_and_by_what_remains(door: Door) -> None:
    tenant = await tenant_with(door, 10)
    tenant_id = int(str(tenant["id"]))
    await door.write("tenants", "block", tenant_id)
    quota = await door.quota(tenant)
    assert (quota.manual_block, quota.is_blocked) == (True, True)
    await door.write("tenants", "unblock", tenant_id)
    quota = await door.quota(tenant)
    assert (quota.manual_block, quota.is_blocked) == (False, False)
    await door.write("tenants", "adjust", tenant_id, amount=10, direction="OUT", reason="x")
    assert (await door.quota(tenant)).is_blocked is True


async def test_to_unlimited_and_back(door: Door) -> None:
    tenant = await tenant_with(door, 10)
    tenant_id = int(str(tenant["id"]))
    unlimited = await door.write("token-plans", "create", name="u", total_amount=None)
    await door.write("tenant-quotas", "change", tenant_id, plan_id=unlimited["id"])
    assert (await door.quota(tenant)).tokens_remaining is None
    small = await door.write("token-plans", "create", name="s", total_amount=7)
    await door.write("tenant-quotas", "change", tenant_id, plan_id=small["id"])
    assert (await door.quota(tenant)).tokens_remaining == 7


async def test_a_tenant_nobody_loaded_is_unknown(door: Door) -> None:
    assert dict(await door.counters.peek_tenants([(3, 999)])) == {999: None}
