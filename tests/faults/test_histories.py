"""Histories that a seed draws: programs in this process die between two awaits, stand still, lose replies.

A gateway or a keeper dies at a step of its own that the seed draws, while callers go on; connections are cut
within a message, COMMIT is cut before or behind its execution, scripts are flushed, Redis starts again. One
kind of history has calls, another one what lasts: jobs, batches, holds by API, live sockets, a narrow
upstream. Each ends with the audit of the matrix. A seed that fails is kept, and played first from then on.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.faults import matrix
from tests.faults.audit import Expected, Figures
from tests.faults.lasting import Lasting
from tests.faults.proxy import Proxy, Trap, Way
from tests.faults.scene import Scene
from tests.faults.servers import Valkey
from tests.faults.staged import StagedProgram, StagedWorld
from tests.faults.world import Node
from tests.search import seeds_of

pytestmark = pytest.mark.nightly  # a search: half a minute each, and minutes under load
SEED, HISTORIES, LASTING = 700, 3, 1
TROUBLES, HISTORY_S_MAX = 8, 400.0
STEPS_MAX, BYTES_MAX, HELD_S_MAX = 1_500, 4_000, 1.5
Trouble = Callable[[Scene, random.Random], Awaitable[None]]


async def dies_at_a_step(scene: Scene, draw: random.Random) -> None:
    """A program dies within so many steps, and is started again."""
    program = _any(scene, draw).program
    assert isinstance(program, StagedProgram)
    starts, life = program.starts, program.life
    life.dies_at = life.steps + draw.randint(1, STEPS_MAX)
    await scene.world.until(lambda: program.starts > starts, what="it dies and is started again")


async def stands_still(scene: Scene, draw: random.Random) -> None:
    """A program does nothing for a while."""
    program = _any(scene, draw).program
    program.send(signal.SIGSTOP)
    await asyncio.sleep(draw.uniform(0.1, HELD_S_MAX))
    program.send(signal.SIGCONT)


async def loses_commit(scene: Scene, draw: random.Random) -> None:
    """The connection of a COMMIT is cut before it passes, or behind its execution."""
    keeper = scene.world.keepers[0]
    assert keeper.sql is not None
    await _sprung(scene, keeper.sql, Trap(draw.choice(list(Way)), b"COMMIT"))


async def loses_a_reply(scene: Scene, draw: random.Random) -> None:
    """A connection to Redis or of a client is cut within a message, either way."""
    node = _any(scene, draw)
    link = node.clients if node.clients is not None and draw.random() < 1 / 3 else node.redis
    after = draw.randint(1, BYTES_MAX)
    await _sprung(scene, link, Trap(draw.choice(list(Way)), after_bytes=after))


async def resets(scene: Scene, draw: random.Random) -> None:
    """All connections of one link end at once."""
    draw.choice(scene.world.links()).reset()


async def flushes_scripts(scene: Scene, draw: random.Random) -> None:
    """Redis forgets its scripts."""
    with scene.world.counters() as counters:
        counters.execute_command("FUNCTION", "FLUSH", "SYNC")


async def starts_redis_again(scene: Scene, draw: random.Random) -> None:
    """Redis is killed and started again."""
    await asyncio.to_thread(scene.world.valkey.kill)
    await scene.world.start_redis()


TROUBLES_DRAWN: tuple[Trouble, ...] = (
    dies_at_a_step, dies_at_a_step, dies_at_a_step, stands_still, loses_commit, loses_a_reply, resets,
    flushes_scripts, starts_redis_again,
)  # fmt: skip


def _any(scene: Scene, draw: random.Random) -> Node:
    return draw.choice([*scene.world.gateways, *scene.world.keepers])


async def _sprung(scene: Scene, link: Proxy, trap: Trap) -> None:
    """Wait until a trap has sprung: some bytes come by while callers go on."""
    link.set_trap(trap)
    await scene.world.until(trap.sprung.is_set, what=f"a trap springs {trap.way.value}")


async def _troubles(scene: Scene) -> None:
    for _ in range(TROUBLES):
        trouble = scene.draw.choice(TROUBLES_DRAWN)
        scene.say(trouble.__name__)
        await trouble(scene, scene.draw)
        await asyncio.sleep(scene.draw.uniform(0, 0.3))


async def _calls(scene: Scene) -> Figures:
    await scene.set_up()
    async with scene.load(callers=6, pause_s=0.02) as load:
        await _troubles(scene)
        await scene.cast.until_served()
        await load.more(20)
    # A slow machine may reclaim a hold before its call is under way again.
    return await scene.finish(Expected(unheard=True, slow=True))


async def _what_lasts(scene: Scene) -> Figures:
    lasting = Lasting(scene.world, scene.seed)
    await lasting.open()
    await scene.set_up(budgets=False)
    async with lasting:
        await _troubles(scene)
        await scene.cast.until_served()
    await lasting.at_rest()
    figures = await scene.finish(Expected(unheard=True, slow=True))
    await lasting.finish(figures)
    await lasting.close()
    return figures


def _play(world: StagedWorld, seed: int, play: Callable[[Scene], Awaitable[Figures]]) -> None:
    """Play the history of a seed; what is broken is said with what happened."""
    said = list[str]()
    world.upstream.forget()
    scene = Scene(world, long=False, seed=seed, say=said.append)
    try:
        figures = world.run(asyncio.wait_for(play(scene), HISTORY_S_MAX))
    except BaseException as error:
        error.add_note(f"{matrix.ends(world)}\nseed {seed}: {', '.join(said)}")
        raise
    assert not figures.broken, f"{matrix.ends(world)}\nseed {seed}: {', '.join(said)}\n{figures.broken[:9]}"


@pytest.fixture
def world() -> Iterator[StagedWorld]:
    one = StagedWorld(SEED)
    # What it acknowledged is on its disk: a gateway that dies beside it takes none of that along.
    one.valkey = Valkey(one.folder / "valkey", "--appendfsync", "always")
    one.open()
    yield one
    one.close()


def test_calls_are_charged_once_whatever_dies_between_two_awaits(world: StagedWorld) -> None:
    with seeds_of("histories of calls", SEED, HISTORIES) as seeds:
        for seed in seeds:
            _play(world, seed, _calls)


def test_what_lasts_is_charged_once_and_holds_nothing_whatever_dies(world: StagedWorld) -> None:
    with seeds_of("histories of what lasts", SEED, LASTING) as seeds:
        for seed in seeds:
            _play(world, seed, _what_lasts)
