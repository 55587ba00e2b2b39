"""Rows in which our own processes die, freeze or stop."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from gateway.counters.redis.keys import partition_of
from tests.faults.audit import Expected, Figures
from tests.faults.cast import Tenant
from tests.faults.proxy import Trap, Way
from tests.faults.scene import Scene, row
from tests.faults.servers import Program
from tests.faults.workload import Caller, Kind, PlannedCall
from tests.faults.world import SERVING_S_MAX, FaultError, Node, World
from tests.persistence.scenario import release, stop

CRASH_S_MAX = 15.0
NTH = (1, 1, 2, 3, 5, 8)
PAUSED_S = 20.0
STREAMS = 200
AGENTS = 50
STOP_S_MAX = 25.0
# A tenant in turn.
STOPPED_S = 1.0


@dataclass(slots=True)
class Crashes:
    """Kills of processes at named points: how often each point was the last thing a process met."""

    scene: Scene
    seen: Path
    only: tuple[str, ...]
    wanted: int
    died: dict[str, int] = field(default_factory=dict)
    rare: set[str] = field(default_factory=set)

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.died.values())

    async def run(self, nodes: list[Node]) -> None:
        """Let some processes meet their points, then kill them until it is enough."""
        for node in nodes:
            node.program.crash = ("", 0, self.seen)
            await self._again(node.program)
        await self.scene.world.until(lambda: len(self._points()) > len(self.only) * 2)
        await asyncio.sleep(5.0 if self.scene.long else 0.3)
        await asyncio.gather(*(self._kill(node.program) for node in nodes))
        for node in nodes:
            node.program.crash = None
            await self._again(node.program)

    def _points(self) -> list[str]:
        found = set(self.seen.read_text().splitlines()) if self.seen.exists() else set()
        return sorted(one for one in found if one.startswith(self.only))

    def _choose(self) -> tuple[str, int, Path]:
        """A point met least often so far; rarely met ones, and all in the short form, at their first time."""
        draw = self.scene.draw
        point = min(self._points(), key=lambda one: (self.died.get(one, 0), draw.random()))
        first = point in self.rare or not self.scene.long
        return point, 1 if first else draw.choice(NTH), self.seen

    async def _again(self, program: Program) -> None:
        await _killed(self.scene, program)

    async def _kill(self, program: Program) -> None:
        plan = program.crash = self._choose()
        await self._again(program)
        while self.count < self.wanted:
            # The next plan is set before this one is carried out: the restart takes it up.
            point, starts = plan[0], program.starts
            plan = program.crash = self._choose()
            if not await self._dies(program, starts):
                self.rare.add(point)
                self.scene.say(f"not met in time: {plan}")
                await self._again(program)
                continue
            self.died[point] = self.died.get(point, 0) + 1
            self.scene.say(f"{self.count} of {self.wanted} crashes, {len(self.died)} points")

    async def _dies(self, program: Program, starts: int) -> bool:
        """Whether a process that was just started dies in time, from when it meets points at all."""
        size, began, end = self._seen_bytes(), 0.0, time.monotonic() + SERVING_S_MAX
        while program.starts == starts:
            now = time.monotonic()
            if not began and self._seen_bytes() > size:
                began = now
            if now > (began + CRASH_S_MAX if began else end):
                return False
            await asyncio.sleep(0.01)
        return True

    def _seen_bytes(self) -> int:
        return self.seen.stat().st_size


async def _killed(scene: Scene, program: Program) -> None:
    """Kill a process, and wait until it is started again."""
    before = program.starts
    program.send(signal.SIGKILL)
    await scene.world.until(lambda: program.starts > before)


@asynccontextmanager
async def _quietly(_: Scene) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _stopping(scene: Scene) -> AsyncIterator[None]:
    """Tenants are stopped and let go on again, by turns; in the end all go on."""
    url, ended = scene.world.postgres.url, asyncio.Event()

    async def stop_and_release() -> None:
        turn = 0
        while not ended.is_set():
            one = scene.cast.tenants[turn % len(scene.cast.tenants)]
            owner, turn = one.organization_id, turn + 1
            account = await asyncio.to_thread(stop, url, partition_of(owner), owner, one.id)
            await asyncio.sleep(STOPPED_S)
            await release(url, account)

    stopping = asyncio.create_task(stop_and_release())
    try:
        yield
    finally:
        ended.set()
        await stopping


async def _crashes(
    scene: Scene,
    nodes: list[Node],
    only: tuple[str, ...],
    wanted: int,
    meanwhile: Callable[[Scene], AbstractAsyncContextManager[None]] = _quietly,
) -> Figures:
    await scene.set_up()
    seen = (
        scene.world.folder
        / f"points-{nodes[0].program.role}-{meanwhile.__name__}-{only[0].replace('/', '.')}"
    )
    crashes = Crashes(scene, seen, only, wanted)
    async with scene.load(callers=10), meanwhile(scene):
        await crashes.run(nodes)
    await scene.cast.until_served()
    figures = await scene.finish(Expected(unheard=nodes[0] in scene.world.gateways))
    figures.other = {"crashes": crashes.count, "points": len(crashes.died)}
    return figures


@row("A gateway is killed at each crash point", limit_s=3600)
async def gateway_crashes(scene: Scene) -> Figures:
    """Self-SIGKILL at every await of a request: suspended, sent, resumed."""
    nodes = scene.world.gateways if scene.long else scene.world.gateways[:1]
    return await _crashes(scene, nodes, ("gateway/",), 200 if scene.long else 3)


@row("The flusher is killed at each crash point", limit_s=3600)
async def flusher_crashes(scene: Scene) -> Figures:
    """Self-SIGKILL at every await between reading an entry and its acknowledgement."""
    only = (
        "gateway/background/flushing/flusher.",
        "gateway/counters/keeper/outbox.",
        "persistence/ledger/writer.",
    )
    return await _crashes(scene, scene.world.keepers[:1], only, 60 if scene.long else 2)


@row("The flusher is killed while accounts are stopped and let go on", only_long=True, limit_s=3600)
async def flusher_crashes_stopped(scene: Scene) -> Figures:
    """As above, also between what is judged to wait, moved aside, and back."""
    only = (
        "gateway/background/flushing/flusher.",
        "gateway/counters/keeper/outbox.",
    )
    return await _crashes(scene, scene.world.keepers[:1], only, 60 if scene.long else 3, _stopping)


@row("The keeper is killed at each crash point of any of its loops", only_long=True, limit_s=3600)
async def keeper_crashes(scene: Scene) -> Figures:
    """Self-SIGKILL at every await of verifier, pusher, reclaimer, late queue and the rest."""
    return await _crashes(scene, scene.world.keepers[:1], ("gateway/", "persistence/"), 100)


@row("Gateways and the keeper are killed by turns under a tree of runs")
async def runs_killed(scene: Scene) -> Figures:
    """50 agents on 4 levels call meanwhile: of the root is used what all its calls cost."""
    cast, world = await scene.set_up(), scene.world
    tenant = cast.tenants[1]  # whose calls are those of this row alone
    said = [f"agent-{n}; parent=agent-{(n - 1) // 4}" if n else "agent-0; max=1000" for n in range(AGENTS)]
    before, caller = await asyncio.to_thread(_spent, world, tenant), Caller(world.gateways[0].door)
    for one in said:
        opened = await caller.call(cast.ask(Kind.CHAT, tenant, scene.draw, x_tollkeeper_run=one))
        scene.calls.append(opened)
        if not opened.complete:
            raise FaultError(f"{one} is not opened: {opened.status} {opened.reason}")
    caller.leave()

    def ask(draw: random.Random) -> PlannedCall:
        leave_at = draw.randrange(6) if draw.random() < 1 / 12 else None
        kind = draw.choice((Kind.CHAT, Kind.STREAM))
        return cast.ask(kind, tenant, draw, leave_at, x_tollkeeper_run=draw.choice(said))

    nodes, kills = [*world.gateways, *world.keepers], 30 if scene.long else 4
    async with scene.load(ask, callers=16) as load:
        for number in range(kills):
            await load.more(10)
            await _killed(scene, nodes[number % len(nodes)].program)
    figures = await scene.finish(Expected(unheard=True))
    cost = await asyncio.to_thread(_spent, world, tenant) - before
    found = await asyncio.to_thread(world.admin, "GET", f"/runs?tenant_id={tenant.id}&limit=100")
    runs = {one["id"]: one for one in found["items"]}
    used = int(Decimal(runs["agent-0"]["used"]) * 10**9)
    figures.other = {"kills": kills, "runs": len(runs), "used_nano": used}
    held = [id_ for id_, one in runs.items() if Decimal(one["held"])]
    if used != cost or held or len(runs) != AGENTS:
        figures.broken.append(f"{used} nano-units of the root are used, calls cost {cost}; {held} still hold")
    return figures


def _spent(world: World, tenant: Tenant) -> int:
    """What the journal says all calls of a tenant cost, in nano-units."""
    query = "SELECT coalesce(sum(cost), 0) FROM call WHERE tenant_id = %s AND NOT refused"
    return int(world.rows(query, tenant.id)[0][0])


@row("COMMIT is sent and its reply is lost")
async def commit_reply_lost(scene: Scene) -> Figures:
    """Its link is cut before COMMIT passes, and after it was executed; the keeper lives or is killed."""
    await scene.set_up()
    keeper = scene.world.keepers[0]
    assert keeper.sql is not None
    cuts = 0
    async with scene.load() as load:
        for number in range(50 if scene.long else 3):
            way = Way.TO_CLIENT if number % 3 else Way.TO_SERVER
            trap = Trap(way, b"COMMIT")
            if number % 2:
                trap.then = lambda: keeper.program.send(signal.SIGKILL)
            keeper.sql.set_trap(trap)
            await load.more(5)
            await asyncio.wait_for(trap.sprung.wait(), SERVING_S_MAX)
            cuts += 1
            scene.say(f"{cuts} cuts")
    figures = await scene.finish()
    figures.other = {"cuts": cuts}
    return figures


async def _keepers(scene: Scene, count: int) -> Figures:
    await scene.set_up()
    world = scene.world
    more = [await world.add_keeper() for _ in range(count - len(world.keepers))]
    pause_s = PAUSED_S if scene.long else 1.5
    try:
        async with scene.load():
            for number in range(4 if scene.long else 1):
                paused = world.keepers[number % count]
                await asyncio.sleep(0.5)
                paused.program.send(signal.SIGSTOP)
                await asyncio.sleep(pause_s)
                paused.program.send(signal.SIGCONT)
                scene.say(f"keeper {number + 1} woke after {pause_s:g} s")
                await asyncio.sleep(0.5)
    finally:
        for node in more:
            await world.remove(node)
    figures = await scene.finish()
    figures.other = {"keepers": count, "paused_s": pause_s}
    return figures


@row("Two keepers on the same partitions, one paused past its lease and woken")
async def two_keepers(scene: Scene) -> Figures:
    """The paused one wakes in the middle of a transaction that has timed out."""
    return await _keepers(scene, 2)


@row("Four keepers on the same partitions, one paused past its lease and woken", only_long=True)
async def four_keepers(scene: Scene) -> Figures:
    """The same with four."""
    return await _keepers(scene, 4)


@row("SIGTERM with 200 streams")
async def sigterm(scene: Scene) -> Figures:
    """Streams in flight end whole within the grace; the worker is gone within 25 s."""
    await scene.set_up()
    node = scene.world.gateways[0]
    tenant = scene.cast.tenants[0]
    pause_s = "0.5" if scene.long else "0.15"

    def ask(_: random.Random) -> PlannedCall:
        return scene.cast.ask(Kind.STREAM, tenant, scene.draw, x_fault_pause_s=pause_s, x_fault_pieces="20")

    load = scene.cast.load(ask, callers=STREAMS)
    load.ports = [load.ports[0]]
    streams = STREAMS if scene.long else 60
    load.callers = streams
    told = scene.world.upstream.told
    before = len(told)
    async with load:
        await scene.world.until(lambda: len(told) >= before + streams)
        load._stop.set()
        scene.world.restarts = False
        began = time.monotonic()
        status = await asyncio.to_thread(node.program.stop)
        took = time.monotonic() - began
        scene.world.restarts = True
    scene.calls += load.calls
    figures = await scene.finish()
    # A slow machine has begun the last stream only after the first have ended, and their callers go on.
    begun = [call for call in load.calls if call.request_id in scene.world.upstream.told]
    figures.other = {"streams": len(begun), "whole": load.complete, "stopped_s": round(took, 1)}
    if status or took > STOP_S_MAX or load.complete < len(begun) or len(begun) < streams:
        figures.broken.append(
            f"status {status} after {took:.1f} s, {load.complete} of {len(begun)} streams whole"
        )
    return figures
