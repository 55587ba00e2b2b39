"""Who says that it is there is in the list, until it leaves or is silent; what others wrote there is not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from gateway.core.accounts.refusals import busiest
from gateway.core.layout import LAYOUT
from gateway.counters.history_guard import HistoryGuards
from gateway.counters.keeper.activity import BUCKET_S, KEPT_S, TENANTS_TOLD_MAX, Activity
from gateway.counters.keeper.program_registry import ProgramRegistry
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersUnavailable
from gateway.run.lifecycle import this_program
from tests.builders import World
from tests.counters.conftest import Connect
from tests.waiting import eventually


def gateway(wire: RedisConnection, **bounds: float) -> ProgramRegistry:
    return ProgramRegistry(wire, this_program("gateway"), **bounds)  # type: ignore[arg-type]  # a count is one too


async def test_who_said_so_is_there_until_it_leaves(world: World, connect: Connect) -> None:
    wire = await connect(world.url)
    first, keeper = gateway(wire), ProgramRegistry(wire, this_program("keeper", "0073"))
    await first.say()
    await keeper.say()
    await first.say()
    found = await keeper.read()
    assert {one.program.id: one.program for one in found} == {
        first.said.id: first.said, keeper.said.id: keeper.said,
    }  # fmt: skip
    assert (first.said.layout, keeper.said.schema) == (LAYOUT, "0073")
    seconds, _ = world.client.time()
    assert all(abs(one.said_at - seconds) < 60 for one in found)
    await first.leave()
    assert [one.program for one in await keeper.read()] == [keeper.said]


async def test_who_is_silent_goes_by_itself(world: World, connect: Connect) -> None:
    wire = await connect(world.url)
    silent, other = gateway(wire), gateway(wire, silent_s=60)
    await silent.say()
    await other.say()
    world.client.zincrby(keys.PROGRAMS, -61, next(iter(_members(world, silent))))
    assert [one.program for one in await other.read()] == [other.said]
    assert world.client.zcard(keys.PROGRAMS) == 1


async def test_program_that_spoke_while_the_clock_was_ahead_is_gone(world: World, connect: Connect) -> None:
    wire = await connect(world.url)
    ended, running = gateway(wire), gateway(wire)
    await ended.say()
    await running.say()
    for program in (ended, running):
        world.client.zincrby(keys.PROGRAMS, 3600, next(iter(_members(world, program))))
    await running.say()
    assert [report.program for report in await running.read()] == [running.said]


async def test_those_that_spoke_last_are_kept(world: World, connect: Connect) -> None:
    wire = await connect(world.url)
    several = [gateway(wire, programs_max=3) for _ in range(5)]
    for one in several:
        await one.say()
        world.client.zincrby(keys.PROGRAMS, -10 + several.index(one), next(iter(_members(world, one))))
    assert {one.program.id for one in await several[0].read()} == {one.said.id for one in several[2:]}


async def test_what_others_wrote_there_is_passed_by(world: World, connect: Connect) -> None:
    ours = gateway(await connect(world.url))
    await ours.say()
    seconds, _ = world.client.time()
    for member in (b"", b"\xff", b"{}", b"[1]", b'{"id":"x","role":"admin","version":"1"}'):
        world.client.zadd(keys.PROGRAMS, {member: seconds})
    later = b'{"id":"y","role":"keeper","version":"9","layout":200,"host":"h","started_at":1.5,"more":true}'
    world.client.zadd(keys.PROGRAMS, {later: seconds})
    assert [one.program.version for one in await ours.read()] == [ours.said.version, "9"]


async def test_it_is_said_again_and_again_and_a_key_of_another_type_ends_nothing(
    world: World, connect: Connect
) -> None:
    world.client.set(keys.PROGRAMS, "no set")
    ours = gateway(await connect(world.url), each_s=0.01)
    saying = asyncio.create_task(ours.keep_saying())
    try:
        await eventually(lambda: world.client.info("errorstats").get("errorstat_WRONGTYPE"))
        world.client.delete(keys.PROGRAMS)
        await eventually(lambda: world.client.zcard(keys.PROGRAMS) == 1)
    finally:
        saying.cancel()


# --- forms ------------------------------------------------------------------------------
# A connection of a program whose forms of data differ from those of programs that serve is not used.


class Tree:
    """A process of a tree between releases, with its connection, as gateways and keepers make them."""

    def __init__(self, world: World, forms: str, started_at: float) -> None:
        self.guards = HistoryGuards(f"{forms}{started_at}", time.monotonic)
        self.wire = RedisConnection(parse_url(world.url), time.monotonic)
        self.guards.guard(self.wire)
        program = replace(this_program("gateway"), host=f"host-{forms}", forms=forms, started_at=started_at)
        self.programs = ProgramRegistry(self.wire, program)
        self.guards.admit = self.programs.admit
        self.wire.start()

    async def serves(self) -> bool:
        """Wait until the connection is used, or waits for others."""
        await eventually(lambda: self.wire.connected or self.programs.waits_for)
        return self.wire.connected

    async def end(self) -> None:
        await self.programs.leave()
        await self.wire.close()


async def test_a_program_of_other_forms_names_other_programs_and_waits_until_their_end(world: World) -> None:
    first, second = Tree(world, "aaaa", 1.0), Tree(world, "aaaa", 2.0)
    assert [await first.serves(), await second.serves()] == [True, True]
    later = Tree(world, "bbbb", 3.0)
    assert not await later.serves()
    assert "on host-aaaa" in later.wire.cause
    seen = await first.programs.read()
    assert {one.program.forms: one.program.waits for one in seen} == {"aaaa": False, "bbbb": True}
    await first.end()
    restarted = Tree(world, "aaaa", 4.0)
    assert await restarted.serves()  # beside one of its own
    assert not later.wire.connected
    await second.end()
    await restarted.end()
    await eventually(lambda: later.wire.connected)
    assert [one.program.waits for one in await later.programs.read()] == [False]
    await later.end()


async def test_programs_that_begin_together_serve_only_with_the_same_forms(world: World) -> None:
    several = [Tree(world, forms, 1.0) for forms in ("aaaa", "bbbb", "cccc") for _ in range(2)]

    def serving() -> list[str]:
        there = [one.programs.said.forms for one in several if one.wire.connected]
        assert len(set(there)) <= 1
        return there

    await eventually(lambda: len(serving()) == 2)
    await eventually(lambda: sum(one.programs.waits_for != "" for one in several) == 4)
    assert len(serving()) == 2
    for one in several:
        await one.end()


async def test_a_program_serves_beside_the_release_before_and_not_beside_a_tree_without_second_number(
    world: World,
) -> None:
    seconds, _ = world.client.time()
    before = b'{"id":"g","role":"gateway","version":"1.0.0","layout":132,"host":"web-7","started_at":1.5,"schema":""}'
    world.client.zadd(keys.PROGRAMS, {before: seconds})
    ours = Tree(world, "aaaa", 2.0)
    assert await ours.serves()
    await ours.end()
    world.client.zadd(keys.PROGRAMS, {before.replace(b"132", b"133"): seconds})
    later = Tree(world, "aaaa", 3.0)
    assert not await later.serves()
    assert later.programs.waits_for.endswith("gateway 1.0.0 on web-7")
    await later.end()


def _members(world: World, of: ProgramRegistry) -> list[bytes]:
    return [one for one in world.client.zrange(keys.PROGRAMS, 0, -1) if of.said.id.encode() in one]


# --- activity ---------------------------------------------------------------------------
# What tenants did lately is kept over all gateways, forgotten by itself, and never waited for.


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
