"""Rows in which what lasts longer than a call goes on while something dies, freezes, fills up or restarts."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from math import inf

from gateway.settings import settings as settings_module
from tests.faults.audit import Figures
from tests.faults.lasting import Lasting
from tests.faults.rows_traffic import HOUR_S, Clock, libfaketime
from tests.faults.scene import Scene, row
from tests.faults.servers import Program
from tests.faults.world import MissingError

BACK_S_MAX = 5.0
BEFORE_S, AFTER_S = 5.0, 8.0
REFUSES_S, AWAY_S = 6.0, 2.0
Fault = Callable[[Scene, Lasting], Awaitable[None]]


async def _kill(scene: Scene, program: Program) -> None:
    before = program.starts
    program.send(signal.SIGKILL)
    await scene.world.until(lambda: program.starts > before)


async def worker_killed(scene: Scene, lasting: Lasting) -> None:
    await _kill(scene, scene.world.gateways[1].program)


async def keeper_killed(scene: Scene, lasting: Lasting) -> None:
    await _kill(scene, scene.world.keepers[0].program)


async def redis_killed(scene: Scene, lasting: Lasting) -> None:
    scene.world.valkey.kill()
    await scene.world.start_redis()


async def postgres_killed(scene: Scene, lasting: Lasting) -> None:
    await asyncio.to_thread(scene.world.postgres.stop, signal.SIGQUIT)
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(scene.world.postgres.start)


async def upstream_restarted(scene: Scene, lasting: Lasting) -> None:
    for socket in lasting.sockets:
        socket.writer.transport.abort()
    await lasting.upstream.again(AWAY_S)


async def upstream_resets(scene: Scene, lasting: Lasting) -> None:
    lasting.upstream.resets = True
    await asyncio.sleep(AWAY_S)
    lasting.upstream.resets = False


def paused(seconds: float) -> Fault:
    async def pause(scene: Scene, lasting: Lasting) -> None:
        scene.world.valkey.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        scene.world.valkey.send(signal.SIGCONT)

    return pause


async def redis_full(scene: Scene, lasting: Lasting) -> None:
    with scene.world.counters() as counters:
        before = counters.config_get("maxmemory")["maxmemory"]
        counters.config_set("maxmemory", "1")
        await asyncio.sleep(REFUSES_S)
        counters.config_set("maxmemory", before)


async def redis_refuses(scene: Scene, lasting: Lasting) -> None:
    with scene.world.counters() as counters:
        counters.config_set("min-replicas-to-write", "1")
        await asyncio.sleep(REFUSES_S)
        counters.config_set("min-replicas-to-write", "0")


async def clocks_off(scene: Scene, lasting: Lasting) -> None:
    clock = Clock(scene.world.folder / "gateway-clock")
    for ahead_s in (HOUR_S, -HOUR_S, 0):
        clock.set(ahead_s)
        await asyncio.sleep(BEFORE_S)


async def drained(scene: Scene, lasting: Lasting) -> None:
    for node in scene.world.gateways:
        starts = node.program.starts
        node.program.send(signal.SIGTERM)
        await scene.world.until(lambda node=node, starts=starts: node.program.starts > starts)


async def reloaded(scene: Scene, lasting: Lasting) -> None:
    """The supervisor reads again at SIGHUP, and hands its workers what they find on standard input."""
    for number in range(10):
        for node in scene.world.gateways:
            made = node.program.settings.with_values(jobs_interval_s=1.0 + number % 2)
            assert node.program.process is not None
            assert node.program.process.stdin is not None
            node.program.process.stdin.write(settings_module.to_json(made) + b"\n")
            node.program.process.stdin.flush()
        await asyncio.sleep(0.5)


# By name: the title, and what happens.
FAULTS: dict[str, tuple[str, Fault]] = {
    "worker_killed": ("a worker is killed", worker_killed),
    "keeper_killed": ("the keeper is killed", keeper_killed),
    "redis_killed": ("Redis is killed", redis_killed),
    "postgres_killed": ("PostgreSQL is killed, 2 s away", postgres_killed),
    "upstream_restarted": ("the upstream resets all, 2 s away", upstream_restarted),
    "upstream_resets": ("the upstream makes things and never tells, for 2 s", upstream_resets),
    "redis_paused_5": ("Redis pauses for 5 s", paused(5.0)),
    "redis_paused_15": ("Redis pauses for 15 s", paused(15.0)),
    "redis_full": ("Redis is full for 6 s", redis_full),
    "redis_refuses": ("Redis has too few replicas to write, for 6 s", redis_refuses),
    "clocks_off": ("a gateway's clock goes an hour ahead and behind", clocks_off),
    "drained": ("gateways are drained and started again", drained),
    "reloaded": ("settings are handed on ten times", reloaded),
}


async def _play(scene: Scene, name: str) -> Figures:
    world, lasting = scene.world, Lasting(scene.world, scene.seed)
    if name == "clocks_off":
        if not libfaketime():
            raise MissingError("libfaketime is missing and cannot be installed (Debian's package faketime)")
        world.gateways[1].program.environment |= Clock(world.folder / "gateway-clock").environment
    await lasting.open()
    await scene.set_up(budgets=False)
    async with lasting, scene.probing():
        await asyncio.sleep(BEFORE_S if scene.long else 2.0)
        began = time.monotonic()
        await FAULTS[name][1](scene, lasting)
        back = time.monotonic()
        await asyncio.sleep(AFTER_S if scene.long else BACK_S_MAX + 1.0)
        await world.until(lambda: scene.served_after(back) is not None, what="serving again")
    rest_s = await lasting.at_rest()
    figures = await scene.finish()
    await lasting.finish(figures)
    await lasting.close()
    figures.other["at_rest_s"] = round(rest_s, 1)
    figures.detected_s, figures.serving_s = scene.refused_after(began), scene.served_after(back)
    _judge(figures, lasting, back, back + (figures.serving_s or 0.0))
    return figures


def _judge(figures: Figures, lasting: Lasting, back: float, served: float) -> None:
    """How long calls were refused behind the fault, and when the narrow upstream let the next one in."""
    behind = [one for one in lasting.answers if one.ended > back]
    refused = max((one.ended - back for one in behind if one.status == 503), default=0.0)
    narrow = [one for one in behind if one.kind == "narrow" and one.status == 200 and one.began > back]
    first = max(0.0, min((one.ended - served for one in narrow), default=inf))
    figures.other |= {"refused_s": round(refused, 1), "let_in_s": round(first, 1)}
    if refused > BACK_S_MAX:
        figures.broken.append(f"503 was answered {refused:.1f} s behind the fault")
    if first > BACK_S_MAX:
        figures.broken.append(f"capacity let the next call in after {first:.1f} s")


def _named(name: str, title: str) -> None:
    async def play(scene: Scene) -> Figures:
        return await _play(scene, name)

    play.__name__ = f"lasting_{name}"
    row(f"What lasts, and {title}", alone=True)(play)


for _name, (_title, _) in FAULTS.items():
    _named(_name, _title)
