"""A row in which upstreams of one model are killed, stalled and limited, while one of them is well."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from gateway.core.calls.routes import ModelRule, ModelTarget
from gateway.settings.settings import Settings
from tests.faults.audit import Figures
from tests.faults.budgets import MODEL
from tests.faults.scene import Scene, row
from tests.faults.truth import Upstream
from tests.faults.workload import Kind

ROUNDS_SHORT, ROUNDS_LONG = 3, 20
CALLS_SHORT, CALLS_LONG = 24, 200
CALLERS_SHORT, CALLERS_LONG = 8, 32
FIRST_BYTE_S = 3.0
FLIP_S = 0.2
# A worker whose Redis has not answered within its second refuses, whichever upstream is well.
BUSY = "counters_unavailable"
WELL, KILLED, STALLED, LIMITED, FAILED = WAYS = ("well", "killed", "stalled", "limited", "failed")
_STATUS = {LIMITED: b"429 Too Many Requests", FAILED: b"503 Service Unavailable"}


class Target(Upstream):
    """One of several upstreams: only a call that it answers is one of those it tells of."""

    way = WELL

    def __init__(self, seed: int, first: Upstream) -> None:
        super().__init__(seed)
        self.first = first
        self.passed = 0
        self._over = asyncio.Event()

    async def stop(self) -> None:
        """Let those go that it stalled, too."""
        self._over.set()
        await super().stop()

    async def _answer(
        self, path: str, fields: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        way = self.way
        if way == WELL:
            self.told, self.repeated = self.first.told, self.first.repeated
            return await super()._answer(path, fields, body, writer)
        self.passed += 1
        if way == STALLED:
            await self._over.wait()
        elif way != KILLED:
            said = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
            writer.write(said % _STATUS[way])
            await writer.drain()
            return True
        writer.transport.abort()
        return False


def _with(settings: Settings, targets: list[Target]) -> Settings:
    """The same settings, with these upstreams in their order behind one model."""
    table = settings.table
    (own,) = (one for one in table.upstreams if one.name == "openai")
    more = [
        replace(
            own, name=f"target{number}", base_url=f"http://127.0.0.1:{one.port}", first_byte_s=FIRST_BYTE_S
        )
        for number, one in enumerate(targets)
    ]
    rule = ModelRule(MODEL, False, tuple([ModelTarget(one.name, "") for one in more]))
    return settings.with_table(table._replace(upstreams=(*table.upstreams, *more), models=(rule,)))


async def _flip(scene: Scene, ill: list[Target]) -> None:
    """Have upstreams fail, each in a way that changes."""
    while True:
        for one in ill:
            one.way = scene.draw.choice(WAYS[1:])
            if one.way == KILLED:
                one.drop()
        await asyncio.sleep(FLIP_S)


@row("Upstreams of a model are killed, stalled and limited", alone=True, limit_s=1800.0)
async def fallback(scene: Scene) -> Figures:
    """While one target is well no caller sees a failure, and each call is charged once: as that one says."""
    world = scene.world
    targets = [Target(scene.seed + number, world.upstream) for number in range(3)]
    async with AsyncExitStack() as stack:
        for one in targets:
            await one.start()
            stack.push_async_callback(one.stop)
        for node in world.gateways:
            node.program.settings = _with(node.program.settings, targets)
            await asyncio.to_thread(node.program.stop)
        cast = await scene.set_up()
        rounds, calls = (ROUNDS_LONG, CALLS_LONG) if scene.long else (ROUNDS_SHORT, CALLS_SHORT)
        for number in range(rounds):
            well = scene.draw.choice(targets)
            well.way = WELL
            flipping = asyncio.create_task(_flip(scene, [one for one in targets if one is not well]))
            try:
                async with scene.load(
                    lambda draw: cast.ask(
                        draw.choice((Kind.CHAT, Kind.STREAM)), draw.choice(cast.tenants[:2]), draw
                    ),
                    callers=CALLERS_LONG if scene.long else CALLERS_SHORT,
                ) as load:
                    await load.more(calls)
            finally:
                flipping.cancel()
            scene.say(f"{number + 1} of {rounds} rounds, {sum(one.passed for one in targets)} failures")
        for one in targets:
            one.way = WELL
        figures = await scene.finish()
    failed = [one for one in scene.calls if not one.complete and one.reason != BUSY]
    figures.other = {"rounds": rounds, "upstream_failures": sum(one.passed for one in targets)}
    figures.broken += [f"a caller saw {one.status} {one.reason}" for one in failed[:5]]
    reported, stored = sum(one.tokens for one in world.upstream.told.values()), _stored(scene)
    if reported != stored:
        figures.broken.append(f"upstreams answered with {reported} tokens, and the journal has {stored}")
    return figures


def _stored(scene: Scene) -> int:
    """Tokens of all calls in the journal."""
    query = "SELECT coalesce(sum(tokens), 0) FROM call WHERE organization_id = ANY(%s)"
    return int(scene.world.rows(query, scene.cast.organizations)[0][0])
