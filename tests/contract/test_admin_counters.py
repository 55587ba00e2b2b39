"""Control writes do alike in the counters the Admin API's tests use and in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from gateway.core.accounts.plans import LiveQuota
from gateway.counters.redis.keys import partition_of
from tests.admin.conftest import MemoryCounters
from tests.background.backend import Backend, backend_at


class Quotas(Protocol):
    """The part of the port that looks at tenants."""

    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Quotas of (partition, tenant id) pairs."""


@dataclass
class Office:
    """An account, people who write, and the counters that follow."""

    backend: Backend
    push: Callable[[Sequence[str]], Awaitable[Sequence[str]]]
    counters: Quotas
    tenant_id: int
    partition: int

    async def act(self, verb: str, **values: Any) -> None:
        await self.backend.write("tenants", verb, self.tenant_id, **values)
        assert not await self.push([f"tenant:{self.tenant_id}"])

    async def plan(self, total: int | None) -> None:
        plan_id = await self.backend.made("token-plans", name=f"of {total}", total_amount=total)
        await self.backend.write("tenant-quotas", "change", self.tenant_id, plan_id=plan_id)
        assert not await self.push([f"tenant:{self.tenant_id}"])

    async def quota(self) -> LiveQuota:
        found = await self.counters.peek_tenants([(self.partition, self.tenant_id)])
        quota = found[self.tenant_id]
        assert quota is not None
        return quota


@pytest.fixture(params=["memory", "redis"])
async def office(request: pytest.FixtureRequest, valkey: str, migrated: str) -> AsyncIterator[Office]:
    async with backend_at(valkey, migrated) as backend:
        await backend.verify()
        plan_id = await backend.made("token-plans", name="first", total_amount=100)
        tenant = (await backend.write("tenants", "create", name="t", plan_id=plan_id)).row
        tenant_id, organization_id = int(str(tenant["id"])), int(str(tenant["organization_id"]))
        memory = MemoryCounters(migrated)
        push: Callable[[Sequence[str]], Awaitable[Sequence[str]]] = memory.push
        counters: Quotas = memory
        if request.param == "redis":
            push, counters = backend.pusher.push, backend.counters
        assert not await push([f"organization:{organization_id}", f"tenant:{tenant_id}"])
        yield Office(backend, push, counters, tenant_id, partition_of(organization_id))


def seen(quota: LiveQuota) -> tuple[int, int | None, bool, bool]:
    return quota.tokens_used, quota.tokens_remaining, quota.is_blocked, quota.manual_block


async def test_a_first_plan_is_there_to_be_used(office: Office) -> None:
    assert seen(await office.quota()) == (0, 100, False, False)


async def test_recharge_and_adjust_move_what_remains(office: Office) -> None:
    await office.act("recharge", amount=50)
    assert seen(await office.quota()) == (0, 150, False, False)
    await office.act("adjust", amount=150, direction="OUT", reason="r")
    assert seen(await office.quota()) == (0, 0, True, False)
    await office.act("adjust", amount=1, direction="IN", reason="r")
    assert seen(await office.quota()) == (0, 1, False, False)


async def test_a_reset_goes_back_to_the_total(office: Office) -> None:
    await office.act("adjust", amount=70, direction="OUT", reason="r")
    before = await office.quota()
    await office.act("reset")
    after = await office.quota()
    assert (seen(after), after.cycle) == ((0, 100, False, False), before.cycle + 1)


async def test_blocked_by_hand_until_unblocked(office: Office) -> None:
    await office.act("block")
    assert seen(await office.quota()) == (0, 100, True, True)
    await office.act("unblock")
    assert seen(await office.quota()) == (0, 100, False, False)


async def test_unlimited_has_no_remainder(office: Office) -> None:
    await office.plan(None)
    assert seen(await office.quota()) == (0, None, False, False)
    await office.plan(30)
    assert seen(await office.quota()) == (0, 30, False, False)


async def test_nobody_has_no_quota(office: Office) -> None:
    assert await office.counters.peek_tenants([(office.partition, 999_999)]) == {999_999: None}
