"""Rows in which Redis dies, forgets, freezes, fills up or is tampered with."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path

import redis

from gateway.counters.redis import keys
from tests.faults.audit import Expected, Figures
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene, row
from tests.faults.servers import Valkey
from tests.faults.workload import Load
from tests.faults.world import World

DETECTED_S_MAX, SERVING_S_MAX = 5.0, 10.0
# The bound of one wait for Redis is its setting's second, for admission and for settlement;
# the data plane ends whatever is left of it after five.
FROZEN_WAIT_S_MAX = 6.0
WINDOW_S = 1.0
COUNTED_S_MAX = 60.0
LEASED_S = 6.0


async def lost_second(scene: Scene, load: Load) -> None:
    """Calls that Redis acknowledges and PostgreSQL does not get to see: what a lossy fault can take."""
    for keeper in scene.world.keepers:
        keeper.program.send(signal.SIGSTOP)
    await load.more(30 if scene.long else 15)
    await asyncio.sleep(0.8 if scene.long else 0.2)


def wake(scene: Scene) -> None:
    for keeper in scene.world.keepers:
        keeper.program.send(signal.SIGCONT)


@asynccontextmanager
async def lossy(scene: Scene) -> AsyncIterator[tuple[Load, list[float]]]:
    """Load and a prober around a fault; the body notes when the fault was and when Redis was back."""
    await scene.set_up()
    moments: list[float] = []
    async with scene.load() as load, scene.probing():
        await load.more(30)
        yield load, moments
        back = moments[-1]
        await scene.world.until(lambda: scene.served_after(back) is not None, what="serving again")
        await load.more(30)


async def told(scene: Scene, moments: list[float], expected: Expected | None = None) -> Figures:
    """Figures with how long it took to notice and to serve again, worst of all rounds.

    What depends on how fast the machine is breaks the long form alone.
    """
    expected = expected or Expected(slow=not scene.long)
    await scene.world.until_admin()
    await scene.rest()
    if scene.long:
        await scene.world.until(lambda: not _uncounted(scene.world), COUNTED_S_MAX, "losses are counted")
    figures = await scene.finish(expected)
    faults, backs = moments[::2], moments[1::2]
    detected = [one for fault in faults if (one := scene.refused_after(fault)) is not None]
    serving = [one for back in backs if (one := scene.served_after(back)) is not None]
    figures.detected_s, figures.serving_s = max(detected, default=None), max(serving, default=None)
    if scene.long and (figures.detected_s or 0) > DETECTED_S_MAX:
        figures.broken.append(f"detected after {figures.detected_s:.1f} s")
    if scene.long and (figures.serving_s or 0) > SERVING_S_MAX:
        figures.broken.append(f"serving {figures.serving_s:.1f} s after Redis was back")
    return figures


def _uncounted(world: World) -> int:
    """Movements Redis forgot that the keeper has not judged yet."""
    return int(world.rows("SELECT count(*) FROM recovered_event WHERE counted_at IS NULL")[0][0])


async def _restarted(
    scene: Scene, moments: list[float], copy: Path | None = None, *, empty: bool = False
) -> None:
    """Kill Redis, put other files in place where asked to, start it."""
    valkey = scene.world.valkey
    moments.append(time.monotonic())
    valkey.kill()
    if copy is not None or empty:
        valkey.set_back(copy)
    await asyncio.to_thread(valkey.start)
    moments.append(time.monotonic())


async def _rounds(scene: Scene, how: str, rounds: int) -> Figures:
    copy = scene.world.folder / "aof-copy"
    async with lossy(scene) as (load, moments):
        for number in range(rounds):
            if how == "older":
                await asyncio.to_thread(scene.world.valkey.copy, copy)
            if how != "killed" or number % 2:
                await lost_second(scene, load)
            await _restarted(scene, moments, copy if how == "older" else None, empty=how == "empty")
            wake(scene)
            await scene.world.until(lambda: scene.served_after(moments[-1]) is not None, what="serving again")
            scene.say(f"{number + 1} of {rounds}")
            await load.more(30)
    return await told(scene, moments)


@row("Valkey is killed and restarted (append-only file synced every second)")
async def valkey_killed(scene: Scene) -> Figures:
    """What it acknowledged it had written; only a machine that dies loses its last second."""
    return await _rounds(scene, "killed", 10 if scene.long else 1)


@row("Power loss: an older append-only file comes back", only_long=True)
async def power_loss(scene: Scene) -> Figures:
    """The workers live: their logs have what the file has not."""
    return await _rounds(scene, "older", 10 if scene.long else 1)


@row("The primary restarts empty")
async def primary_empty(scene: Scene) -> Figures:
    """Nothing is left of it, not even the append-only file."""
    return await _rounds(scene, "empty", 10 if scene.long else 1)


def follows(client: redis.Redis) -> bool:
    return bool(client.info("replication").get("master_link_status") == "up")


@row("A stale replica is promoted")
async def stale_replica(scene: Scene) -> Figures:
    """Its link is blocked, the primary goes on and dies, the replica takes its address."""
    world = scene.world
    rounds = 5 if scene.long else 1
    async with lossy(scene) as (load, moments):
        for number in range(rounds):
            primary = world.valkey
            replica = Valkey(
                world.folder / f"replica{time.monotonic_ns()}", "--repl-diskless-sync-delay", "0"
            )
            await asyncio.to_thread(replica.start)
            link = Proxy(primary.port)
            await link.start()
            with world.counters_of(replica) as client:
                client.replicaof("127.0.0.1", link.port)
                await world.until(partial(follows, client), what="the replica follows")
                await load.more(20)
                link.black_hole = True
                await lost_second(scene, load)
                moments.append(time.monotonic())
                primary.kill()
                client.replicaof("NO", "ONE")
            world.valkey = replica
            for node in [*world.gateways, *world.keepers]:
                node.redis.point_to(replica.port)
            moments.append(time.monotonic())
            await link.stop()
            wake(scene)
            await world.until(lambda: scene.served_after(moments[-1]) is not None, what="serving again")
            scene.say(f"{number + 1} of {rounds} promotions")
            await load.more(30)
    return await told(scene, moments)


@row("Redis is away and the plan allows calls to go on", only_long=True)
async def allowed_without_redis(scene: Scene) -> Figures:
    """Within what was leased before; everything is charged once when Redis is back."""
    # Whom an enforced budget covers is not served without the counters.
    await scene.set_up(on_store_failure="allow", budgets=False)
    world = scene.world
    away_s = 30.0 if scene.long else 1.0
    async with scene.load() as load:
        await load.more(100)
        await asyncio.sleep(LEASED_S)  # leases are renewed every five seconds
        world.valkey.kill()
        before = load.complete
        await asyncio.sleep(away_s)
        meanwhile = load.complete - before
        await asyncio.to_thread(world.valkey.start)
        await load.more(50)
    figures = await scene.finish()
    figures.other = {"away_s": away_s, "answered_meanwhile": meanwhile}
    if not meanwhile:
        figures.broken.append("nothing was answered while Redis was away")
    return figures


@row("Workers are killed and Redis loses its last second, together")
async def workers_and_redis(scene: Scene) -> Figures:
    """Their logs are on disk but for the last moment: what is lost lies within one second."""
    world = scene.world
    copy = world.folder / "aof-copy"
    rounds = 10 if scene.long else 1
    killed: list[float] = []
    async with lossy(scene) as (load, moments):
        for number in range(rounds):
            await asyncio.to_thread(world.valkey.copy, copy)
            await lost_second(scene, load)
            world.restarts = False
            killed.append(time.monotonic())
            for node in world.gateways:
                node.program.send(signal.SIGKILL)
            await world.until(lambda: all(node.program.ended is not None for node in world.gateways))
            await _restarted(scene, moments, copy)
            world.restarts = True
            wake(scene)
            await world.until(lambda: scene.served_after(moments[-1]) is not None, what="serving again")
            scene.say(f"{number + 1} of {rounds}")
            await load.more(30)
    figures = await told(scene, moments, Expected(lost_events=True, lost=True, unheard=True, slow=True))
    figures.other = {"lost_calls": figures.lost_calls, "killed": rounds * len(world.gateways)}
    # Also calls that their clients or the kill cut short, and reclaims that were lost and happened again.
    if figures.counted_lost > figures.disputed_calls:
        figures.broken.append(f"{figures.counted_lost} are counted as lost, {figures.disputed_calls} can be")
    if early := [age for age in _ages(scene, figures, killed) if age > WINDOW_S]:
        figures.broken.append(f"a call was lost that was answered {max(early):.2f} s before the fault")
    return figures


def _ages(scene: Scene, figures: Figures, killed: list[float]) -> list[float]:
    """How long before the workers were killed each lost call was answered; below 0: heard of behind that."""
    lost = [call for call in scene.calls if call.request_id in figures.lost_ids]
    return [min((one for one in killed if one >= call.began), default=inf) - call.ended for call in lost]


@row("Valkey is out of memory")
async def valkey_full(scene: Scene) -> Figures:
    """New calls are refused; those in flight settle, and nothing is evicted."""
    await scene.set_up()
    world = scene.world
    async with scene.load() as load, scene.probing():
        await load.more(20)
        with world.counters() as counters:
            used = int(counters.info("memory")["used_memory"])
            counters.config_set("maxmemory", used // 2)
            moment = time.monotonic()
            try:
                await world.until(lambda: scene.refused_after(moment) is not None, what="refused")
                await asyncio.sleep(10 if scene.long else 0.3)
            finally:
                counters.config_set("maxmemory", 0)
        back = time.monotonic()
        await world.until(lambda: scene.served_after(back) is not None, what="serving again")
        await load.more(20)
    figures = await scene.finish()
    figures.detected_s, figures.serving_s = scene.refused_after(moment), scene.served_after(back)
    return figures


@row("The scripts are flushed from Valkey")
async def scripts_flushed(scene: Scene) -> Figures:
    """They are loaded again by whoever misses them first."""
    await scene.set_up()
    flushes = 50 if scene.long else 3
    async with scene.load() as load:
        for _ in range(flushes):
            with scene.world.counters() as counters:
                counters.script_flush()
                counters.execute_command("FUNCTION", "FLUSH", "SYNC")
            await load.more(10)
    figures = await scene.finish()
    figures.other = {"flushes": flushes}
    return figures


@row("A stream key is replaced by a string")
async def stream_replaced(scene: Scene) -> Figures:
    """Scripts that cannot append half-write nothing; put back, everything is appended once."""
    await scene.set_up()
    world = scene.world
    names = {keys.outbox(keys.partition_of(one)) for one in scene.cast.organizations}
    async with scene.load() as load, scene.probing():
        await load.more(20)
        with world.counters() as counters:
            for name in names:
                _set_aside(counters, name)
            # What cannot be appended is kept on the workers' disks meanwhile.
            await load.more(30)
            await asyncio.sleep(3 if scene.long else 0)
            for name in names:
                pipe = counters.pipeline()
                pipe.delete(name)
                pipe.rename(f"{name}:aside", name)
                pipe.execute()
        back = time.monotonic()
        await world.until(lambda: scene.served_after(back) is not None, what="serving again")
        await load.more(20)
    figures = await scene.finish()
    figures.serving_s = scene.served_after(back)
    return figures


def _set_aside(counters: redis.Redis, name: str) -> None:
    """Put a string where the stream is, in one step; the stream keeps its entries elsewhere."""
    counters.eval(
        "if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('XADD', KEYS[1], '1-1', 'e', '') "
        "redis.call('XDEL', KEYS[1], '1-1') end "
        "redis.call('RENAME', KEYS[1], KEYS[2]) redis.call('SET', KEYS[1], 'not a stream')",
        2, name, f"{name}:aside",
    )  # fmt: skip


@row("Valkey is frozen for 30 s")
async def valkey_frozen(scene: Scene) -> Figures:
    """No call waits longer than its bound; what was in flight is charged once or not at all."""
    await scene.set_up()
    world = scene.world
    frozen_s = 30.0 if scene.long else 2.5
    async with scene.load(callers=16) as load, scene.probing():
        await load.more(30)
        began = time.monotonic()
        world.valkey.send(signal.SIGSTOP)
        await asyncio.sleep(frozen_s)
        world.valkey.send(signal.SIGCONT)
        back = time.monotonic()
        await world.until(lambda: scene.served_after(back) is not None, what="serving again")
        await load.more(30)
    # On a busy machine a hold may end before its call is under way again.
    figures = await scene.finish(Expected(slow=not scene.long))
    waits = [call.seconds for call in scene.calls if call.began < back and call.ended > began]
    figures.detected_s, figures.serving_s = scene.refused_after(began), scene.served_after(back)
    figures.other = {
        "frozen_s": frozen_s,
        "longest_wait_s": round(max(waits), 2),
        "calls_meanwhile": len(waits),
    }
    if scene.long and max(waits) > FROZEN_WAIT_S_MAX:
        figures.broken.append(f"a call waited {max(waits):.1f} s")
    return figures
