"""Quotas and budgets of Redis as people see them."""

from __future__ import annotations

import pytest

from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.budgets import DEFINED_WINDOW
from gateway.core.layout import LAYOUT
from gateway.counters.keeper.status import AccountHeads
from gateway.counters.layouts.states import WindowState, pack_windows
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.builders import World
from tests.counters.conftest import Connect
from tests.lua.windows import window


async def test_peek_tenants_reads_over_partitions_and_batches(world: World, connect: Connect) -> None:
    status = AccountHeads(await connect(world.url), batch_max=2)
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    world.plan(100)
    other.plan(None)
    world.reserve(need=30)
    found = await status.peek_tenants([(world.p, 7), (world.p, 70), (world.p, 71), (other.p, 8)])
    assert (found[70], found[71]) == (None, None)
    mine, theirs = found[7], found[8]
    assert mine is not None
    assert theirs is not None
    assert (mine.tokens_remaining, mine.tokens_held, mine.cycle, mine.seq) == (100, 30, 1, 1)
    assert (theirs.tokens_remaining, theirs.is_blocked) == (None, False)
    assert await status.holds() == 1


async def test_peek_leaves_out_unreadable_accounts(world: World, connect: Connect) -> None:
    status = AccountHeads(await connect(world.url))
    world.plan(100)
    theirs = [keys.tenant_state(world.p, 70), keys.tenant_state(world.p, 71)]
    for name, raw in zip(theirs, (b"\x01garbage", bytes([LAYOUT + 1]) + bytes(40)), strict=True):
        world.client.set(name, raw)
    found = await status.peek_tenants([(world.p, id_) for id_ in (70, 7, 71, 72)])
    assert (found.keys(), found[72]) == ({7, 72}, None)
    assert found[7] is not None
    assert found[7].tokens_remaining == 100
    world.client.set(world.organization_key, b"\x01")
    assert await status.peek_balances([(world.p, world.caller.organization_id), (world.p, 99)]) == {99: None}
    odd, none = "a" * 16, "b" * 16
    world.client.set(keys.budget_account(world.p, odd), b"\x01")
    assert await status.peek_budgets([(world.p, odd), (world.p, none)]) == {none: None}
    assert status.left_alone.count("account") == 4


async def test_peek_tenants_is_unavailable_in_unverified_partition(world: World, connect: Connect) -> None:
    world.client.delete(keys.marker(world.p))
    status = AccountHeads(await connect(world.url))
    with pytest.raises(CountersUnavailable):
        await status.peek_tenants([(world.p, 7)])


async def test_peek_budgets_reads_over_partitions_and_batches(world: World, connect: Connect) -> None:
    status = AccountHeads(await connect(world.url), batch_max=2)
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    hour = window(7, 100, at=(1_000, 2_000, 3_000))
    for name, one in (("a" * 16, world), ("b" * 16, world), ("c" * 16 + ":" + "d" * 24, other)):
        packed = pack_windows([WindowState(*map(int, DEFINED_WINDOW.struct.unpack(hour)), 30, 4)])
        one.client.set(keys.budget_account(one.p, name), packed)
    names = [
        (world.p, "a" * 16),
        (world.p, "b" * 16),
        (world.p, "e" * 16),
        (other.p, "c" * 16 + ":" + "d" * 24),
    ]
    found = await status.peek_budgets(names)
    assert found.pop("e" * 16) is None
    assert list(found.values()) == [{7: LiveWindow(7, used=30, held=4, start_ms=1_000, ends_ms=2_000)}] * 3
    assert len(found) == 3


async def test_peek_budgets_is_unavailable_in_unverified_partition(world: World, connect: Connect) -> None:
    world.client.delete(keys.marker(world.p))
    status = AccountHeads(await connect(world.url))
    with pytest.raises(CountersUnavailable):
        await status.peek_budgets([(world.p, "a" * 16)])
