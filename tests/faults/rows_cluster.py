"""Rows in which a part of a Valkey Cluster dies, parts from the others, or is given away."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial

from gateway.counters.redis.keys import partition_of
from tests.faults.audit import Figures
from tests.faults.clustered import ClusteredWorld
from tests.faults.rows_redis import lossy, lost_second, told, wake
from tests.faults.scene import Scene, row
from tests.faults.workload import Load
from tests.valkey_cluster import Member

PROMOTED_S_MAX = 60.0
KEYS_AT_ONCE = 20
PARTED_S, REMOVED_S_MAX = 5.0, 5.0


def cluster_of(scene: Scene) -> ClusteredWorld:
    assert isinstance(scene.world, ClusteredWorld)
    return scene.world


async def struck(scene: Scene) -> tuple[Member, Member]:
    """The primary of the organization that is probed, and its replica."""
    world = cluster_of(scene)
    organization = scene.cast.tenants[0].organization_id

    def found() -> tuple[Member, Member]:
        primary = world.primary_of(organization)
        return primary, world.replica_of(primary)

    return await asyncio.to_thread(found)


async def promoted(scene: Scene, replica: Member) -> None:
    """Wait until a replica is a primary, by its own word."""
    end = time.monotonic() + PROMOTED_S_MAX
    while (await asyncio.to_thread(replica.info))["role"] != "master":
        assert time.monotonic() < end, "no replica was promoted"
        await asyncio.sleep(0.02)


async def served_again(scene: Scene, load: Load, moments: list[float]) -> None:
    await scene.world.until(partial(scene.served_after, moments[-1]), what="serving again")
    await load.more(30)


async def _taken_over(scene: Scene, *, is_stale: bool) -> Figures:
    """A primary is killed and its replica takes over, which heard nothing of it any more if it `is_stale`."""
    rounds = 5 if scene.long else 1
    world = cluster_of(scene)
    async with lossy(scene) as (load, moments):
        for number in range(rounds):
            primary, replica = await struck(scene)
            if is_stale:
                world.part_replica(primary, replica)
            await lost_second(scene, load)
            moments.append(time.monotonic())
            await asyncio.to_thread(primary.stop, signal.SIGKILL)
            if is_stale:
                world.heal()
            await promoted(scene, replica)
            moments.append(time.monotonic())
            wake(scene)
            await served_again(scene, load, moments)
            await asyncio.to_thread(world.cluster.mend)
            scene.say(f"{number + 1} of {rounds} promotions")
    return await told(scene, moments)


@row("A primary of a cluster is killed, and its replica takes over", clustered=True, only_long=True)
async def shard_killed(scene: Scene) -> Figures:
    """What it acknowledged a moment before may not have come to the replica."""
    return await _taken_over(scene, is_stale=False)


@row("A stale replica of a cluster is promoted", clustered=True, only_long=True)
async def shard_stale_replica(scene: Scene) -> Figures:
    """It hears nothing of its primary any more, which goes on for a while and dies."""
    return await _taken_over(scene, is_stale=True)


@row("The network parts one primary of a cluster from all others", clustered=True, only_long=True)
async def shards_parted(scene: Scene) -> Figures:
    """Callers reach it still, until it sees that it is alone; its replica takes over; then it comes back."""
    rounds = 3 if scene.long else 1
    world = cluster_of(scene)
    async with lossy(scene) as (load, moments):
        for number in range(rounds):
            primary, replica = await struck(scene)
            for keeper in world.keepers if number % 2 else ():
                keeper.program.send(signal.SIGSTOP)
            world.part(primary)
            await promoted(scene, replica)
            # Until then it served as the primary that it was, and by the word of most of them.
            moments.append(time.monotonic())
            wake(scene)
            if scene.long:
                await asyncio.sleep(PARTED_S)
            world.heal()
            moments.append(time.monotonic())
            await served_again(scene, load, moments)
            await asyncio.to_thread(world.cluster.wait_until_whole)
            scene.say(f"{number + 1} of {rounds}")
    return await told(scene, moments)


@row("A slot of a cluster is moved while calls are in flight", clustered=True)
async def slot_moved(scene: Scene) -> Figures:
    """At once, as newer servers do it, and key by key, as any does."""
    await scene.set_up()
    cluster = cluster_of(scene).cluster
    partition = partition_of(scene.cast.tenants[0].organization_id)
    rounds = 5 if scene.long else 1
    async with scene.load() as load:
        await load.more(30)
        for number in range(rounds):
            await asyncio.to_thread(cluster.move, partition, await asyncio.to_thread(_other, scene))
            await load.more(30)
            to = await asyncio.to_thread(_other, scene)
            go_on = await asyncio.to_thread(cluster.begin_move, partition, to)
            while not await asyncio.to_thread(go_on, KEYS_AT_ONCE):
                await load.more(1)
            await load.more(30)
            scene.say(f"{2 * (number + 1)} of {2 * rounds} moves")
    return await scene.finish()


@row("A primary of a cluster is removed while calls are in flight", clustered=True, alone=True)
async def primary_removed(scene: Scene) -> Figures:
    """Some of its slots go key by key, all others at once; it stays in the settings, alone and empty.

    Then a gateway and the keeper, which may not have seen all of it, start again with these settings.
    """
    await scene.set_up()
    world = cluster_of(scene)
    leaving, _ = await struck(scene)
    to = await asyncio.to_thread(_other, scene)
    async with scene.probing() as probes, scene.load() as load:
        await load.more(30)
        began = time.monotonic()
        for partition in (await asyncio.to_thread(world.cluster.partitions_of, leaving))[::4]:
            go_on = await asyncio.to_thread(world.cluster.begin_move, partition, to)
            while not await asyncio.to_thread(go_on, KEYS_AT_ONCE):
                pass
        await asyncio.to_thread(world.cluster.remove, leaving, to)
        removed = time.monotonic()
        await load.more(60)
        for program in (world.gateways[1].program, world.keepers[0].program):
            starts = program.starts
            program.send(signal.SIGKILL)
            await world.until(lambda program=program, starts=starts: program.starts > starts)
        await world.until_admin()
        await load.more(60)
    ended = time.monotonic()
    figures = await scene.finish()
    # Until the next look nothing tells a primary that gave its last slot away from one that was replaced.
    refused = [one.ended - removed for one in probes if not one.complete]
    ready = await asyncio.to_thread(world.ready)
    figures.other = {
        "removed_s": round(removed - began, 1), "refused": len(refused),
        "refused_s": round(max(refused, default=0.0), 1), "stored_s": round(time.monotonic() - ended, 1),
    }  # fmt: skip
    if max(refused, default=0.0) > REMOVED_S_MAX:
        figures.broken.append(f"calls were refused until {max(refused):.1f} s behind it")
    if ready.get("every_partition") is False or ready.get("reasons"):
        figures.broken.append(f"the keeper says behind it: {ready}")
    return figures


def _other(scene: Scene) -> Member:
    """A primary that has not the organization that is probed."""
    world = cluster_of(scene)
    now = world.primary_of(scene.cast.tenants[0].organization_id)
    return next(one for one in world.cluster.primaries if one is not now)
