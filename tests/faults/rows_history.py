"""Rows in which the data of a running Redis is exchanged for older data: its process says nothing of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from math import inf

import redis

from tests.faults.audit import Expected, Figures, in_flight
from tests.faults.grants import Window
from tests.faults.rows_cluster import PARTED_S, cluster_of, promoted, served_again, struck
from tests.faults.rows_redis import follows, lossy, lost_second, told, wake
from tests.faults.scene import Scene, row
from tests.faults.servers import Valkey
from tests.faults.workload import Load
from tests.faults.world import World
from tests.valkey_cluster import Member

# A copy of the data is made where the block begins, and takes its place where it ends, which is noted.
Exchange = Callable[[World, list[float]], AbstractAsyncContextManager[None]]
# What is the matter while the block runs.
Meanwhile = Callable[[World], AbstractAsyncContextManager[None]]
# A worker writes its log every 50 ms; a busy machine takes longer.
LOGGED_S = 1.0


async def _followed(world: World, client: redis.Redis, of: Valkey) -> None:
    client.replicaof("127.0.0.1", str(of.port))
    await world.until(lambda: follows(client), what="the replica follows")


@asynccontextmanager
async def _resynced(world: World, moments: list[float]) -> AsyncIterator[None]:
    """A replica is made a primary, falls behind, and has the primary follow it for a moment."""
    stale = Valkey(world.folder / f"stale{time.monotonic_ns()}", "--repl-diskless-sync-delay", "0")
    await asyncio.to_thread(stale.start)
    try:
        with world.counters_of(stale) as other, world.counters() as client:
            await _followed(world, other, world.valkey)
            other.replicaof("NO", "ONE")
            yield
            await _followed(world, client, stale)
            moments.append(time.monotonic())
            client.replicaof("NO", "ONE")
    finally:
        await asyncio.to_thread(stale.kill)


@asynccontextmanager
async def _reloaded(world: World, moments: list[float]) -> AsyncIterator[None]:
    """A file that was saved before is loaded: nothing of it says that it is older but what it lacks."""
    with world.counters() as client:
        client.save()
        yield
        reload = partial(client.execute_command, "DEBUG", "RELOAD", "NOSAVE")
        moments.append(time.monotonic())
        await asyncio.to_thread(reload)


@asynccontextmanager
async def _flushed(world: World, moments: list[float]) -> AsyncIterator[None]:
    yield
    with world.counters() as client:
        moments.append(time.monotonic())
        client.flushall()


@asynccontextmanager
async def _asleep(world: World) -> AsyncIterator[None]:
    """No keeper sees what happens, nor what happened since the copy."""
    for keeper in world.keepers:
        keeper.program.send(signal.SIGSTOP)
    yield
    for keeper in world.keepers:
        keeper.program.send(signal.SIGCONT)


@asynccontextmanager
async def _ledger_frozen(world: World) -> AsyncIterator[None]:
    """What happened since the copy is in no row."""
    world.postgres.freeze()
    yield
    world.postgres.freeze(frozen=False)


@asynccontextmanager
async def _keeper_restarted(world: World) -> AsyncIterator[None]:
    """The keeper that saw it is gone; the next one has what PostgreSQL stored."""
    yield
    for keeper in world.keepers:
        keeper.program.send(signal.SIGKILL)


@asynccontextmanager
async def _awake(_: World) -> AsyncIterator[None]:
    """All that happened since the copy is in rows, and calls go on."""
    yield


EXCHANGES: tuple[Exchange, ...] = (_resynced, _reloaded, _flushed)
MEANWHILE: tuple[Meanwhile, ...] = (_asleep, _ledger_frozen, _keeper_restarted, _awake)
SHORT: tuple[tuple[Exchange, Meanwhile], ...] = (
    (_resynced, _asleep),
    (_reloaded, _awake),
    (_flushed, _ledger_frozen),
)


@row("Older data under the same Redis process")
async def data_exchanged(scene: Scene) -> Figures:
    """By a full synchronisation, by a file, by nothing at all; whoever sleeps meanwhile, whoever calls."""
    pairs = [(one, other) for one in EXCHANGES for other in MEANWHILE] if scene.long else SHORT
    async with lossy(scene) as (load, moments):
        for exchange, meanwhile in pairs:
            await _once(scene, load, moments, exchange, meanwhile)
            scene.say(f"{exchange.__name__} {meanwhile.__name__}")
            await load.more(30)
    expected = Expected(slow=not scene.long, unnoticed=_unnoticed(scene, moments))
    return await told(scene, moments, expected)


def _unnoticed(scene: Scene, moments: list[float]) -> tuple[Window, ...]:
    """Until it is noticed, calls are let in on what was used up in the data that is gone.

    Nobody is let in from then until it is served again, which is seen a little later.
    """
    noticed = ((one, one + (scene.refused_after(one) or inf)) for one in moments[1::2])
    served = ((one, until + (scene.served_after(until) or inf)) for one, until in noticed)
    return tuple(Window(begin, until) for begin, (_, until) in zip(moments[::2], served, strict=True))


async def _once(
    scene: Scene, load: Load, moments: list[float], exchange: Exchange, meanwhile: Meanwhile
) -> None:
    """One exchange. Who is awake notices it, then the others wake.

    Calls may be refused and served again before the exchange returns: it notes when its last act began.
    """
    async with meanwhile(scene.world):
        async with exchange(scene.world, moments):
            await load.more(50 if scene.long else 25)
            moments.append(time.monotonic())
        await scene.world.until(lambda: scene.refused_after(moments[-1]) is not None, what="it is noticed")
    await scene.world.until(lambda: scene.served_after(moments[-1]) is not None, what="serving again")


@row("Older data behind everybody's back", only_long=True)
async def data_exchanged_unseen(scene: Scene) -> Figures:
    """Gateways and keepers are killed before it happens: what they left knows better, on disk or in rows."""
    await scene.set_up()
    world = scene.world
    for meanwhile in (_asleep, _awake):
        async with _reloaded(world, []), meanwhile(world):
            async with scene.load() as load:
                await load.more(40)
            # What a worker settled in its last moment is in no log yet, and lost with it.
            await world.until(lambda: not in_flight(world), what="calls that are read on have ended")
            await asyncio.sleep(LOGGED_S)
            await _killed(world)
        world.restarts = True
        async with scene.load() as load:
            await load.more(20)
        await world.until_admin()
    return await scene.finish(Expected(unheard=True))


async def _killed(world: World) -> None:
    """Nobody is left, and nobody comes back yet."""
    world.restarts = False
    nodes = [*world.gateways, *world.keepers]
    for node in nodes:
        node.program.send(signal.SIGKILL)
    await world.until(lambda: all(node.program.ended is not None for node in nodes))


@row(
    "A primary of a cluster takes a stale replica's data, and is a primary again",
    clustered=True,
    only_long=True,
)
async def shard_comes_back(scene: Scene) -> Figures:
    """All of it while no keeper is there: its process and its markers are those that were verified."""
    rounds = 3
    world = cluster_of(scene)
    async with lossy(scene) as (load, moments):
        for number in range(rounds):
            primary, replica = await struck(scene)
            world.part_replica(primary, replica)
            await lost_second(scene, load)
            world.restarts = not number % 2
            for keeper in world.keepers:  # what it knew goes with it
                keeper.program.send(signal.SIGKILL if number % 2 else signal.SIGSTOP)
            moments.append(time.monotonic())
            await asyncio.to_thread(replica.do, "CLUSTER FAILOVER TAKEOVER")
            await promoted(scene, replica)
            world.heal()
            await asyncio.to_thread(world.cluster.wait_until_whole)
            await asyncio.to_thread(primary.do, "CLUSTER FAILOVER")
            await promoted(scene, primary)
            world.restarts = True
            wake(scene)
            await world.until_admin()
            moments.append(time.monotonic())
            await served_again(scene, load, moments)
            await asyncio.to_thread(world.cluster.wait_until_whole)
            scene.say(f"{number + 1} of {rounds}")
    return await told(scene, moments)


@row(
    "Two keepers of a cluster see another topology each",
    clustered=True,
    only_long=True,
    alone=True,
    keepers=2,
)
async def keepers_disagree(scene: Scene) -> Figures:
    """One knows who took over. The other is told by nobody, or by the primary alone that was cut off."""
    world = cluster_of(scene)
    async with lossy(scene) as (load, moments):
        for number in range(6):
            primary, replica = await struck(scene)
            world.mislead(*([primary] if number % 4 else []))
            if number % 2:
                await _taken_over(scene, load, moments, primary, replica)
            else:
                await _cut_off(scene, moments, primary, replica)
            await served_again(scene, load, moments)
            world.mislead(*world.cluster.members)
            await asyncio.to_thread(world.cluster.mend)
            scene.say(f"{number + 1} of 6")
    return await told(scene, moments)


async def _taken_over(
    scene: Scene, load: Load, moments: list[float], primary: Member, replica: Member
) -> None:
    await lost_second(scene, load)
    moments.append(time.monotonic())
    await asyncio.to_thread(primary.stop, signal.SIGKILL)
    await promoted(scene, replica)
    moments.append(time.monotonic())
    wake(scene)


async def _cut_off(scene: Scene, moments: list[float], primary: Member, replica: Member) -> None:
    """Who goes by the primary stores what that acknowledges by itself; the other one wakes behind that."""
    world = cluster_of(scene)
    world.keepers[0].program.send(signal.SIGSTOP)
    world.part(primary)
    await promoted(scene, replica)
    moments.append(time.monotonic())
    wake(scene)
    await asyncio.sleep(PARTED_S)
    world.heal()
    moments.append(time.monotonic())
