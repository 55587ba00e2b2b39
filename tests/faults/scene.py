"""What every row of the matrix is told by: a cast, its load, a prober, and the figures in the end.

`row` puts a row into `NAMED`; the matrix has them in its order.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.faults.audit import Expected, Figures, at_rest, audit
from tests.faults.budgets import begin
from tests.faults.cast import Cast, Tenant, assemble
from tests.faults.grants import Reports
from tests.faults.workload import Call, Caller, Kind, Load, PlannedCall
from tests.faults.world import World

PROBE_PAUSE_S = 0.02
SENT_AGAIN_S_MAX = 120.0
TIGHT_TOKENS = 1_500


@dataclass(slots=True)
class Scene:
    """One row being played. `long` is the form of `make faults`; `say` tells how far it is.

    `reports` are what processes say meanwhile of being late.
    """

    world: World
    long: bool
    seed: int
    say: Callable[[str], None]
    draw: random.Random = field(init=False)
    cast: Cast = field(init=False)
    calls: list[Call] = field(default_factory=list)
    probes: list[Call] = field(default_factory=list)
    reports: Reports = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.reports = Reports(self.world.logs)

    async def set_up(self, *, budgets: bool = True, **plan: str) -> Cast:
        """Make the row's cast, with a tight tenant whose quota runs out meanwhile, and budgets in money."""
        self.cast = await assemble(self.world, TIGHT_TOKENS, budgets=budgets, **plan)
        if budgets:
            await self.cast.until_budgeted()
            await at_rest(self.world)
            await asyncio.to_thread(begin, self.world, self.cast.budgets, self.cast.organizations)
        return self.cast

    @asynccontextmanager
    async def load(
        self,
        draw: Callable[[random.Random], PlannedCall] | None = None,
        callers: int = 8,
        pause_s: float = 0.005,
    ) -> AsyncIterator[Load]:
        """Callers at work; their calls are audited in the end."""
        load = self.cast.load(draw, callers=callers, pause_s=pause_s)
        try:
            async with load:
                yield load
        finally:
            self.calls += load.calls

    @asynccontextmanager
    async def probing(self, tenant: Tenant | None = None) -> AsyncIterator[list[Call]]:
        """One caller who asks all the time, to see when calls are refused and when served."""
        stop = asyncio.Event()
        caller = Caller(self.world.gateways[0].door)
        asked = self.cast.ask(Kind.CHAT, tenant or self.cast.tenants[0], self.draw)

        async def ask() -> None:
            while not stop.is_set():
                self.probes.append(await caller.call(asked))
                await asyncio.sleep(PROBE_PAUSE_S)

        task = asyncio.create_task(ask())
        try:
            yield self.probes
        finally:
            stop.set()
            await task
            caller.leave()
            self.calls += self.probes

    def refused_after(self, moment: float) -> float | None:
        """Seconds from a moment (monotonic) to the end of the first call that was not answered."""
        return next(
            (one.ended - moment for one in self.probes if one.ended > moment and not one.complete), None
        )

    def served_after(self, moment: float) -> float | None:
        """Seconds from a moment to the first complete answer to a call made after it."""
        return next((one.ended - moment for one in self.probes if one.began > moment and one.complete), None)

    async def finish(self, expected: Expected | None = None) -> Figures:
        """Let everything come to rest and compare.

        Nothing in the counters says that a worker has yet to send again what its disk keeps: what is
        missing is looked for until it is there, or as long as that may take.
        """
        await self.world.until_admin()
        end = time.monotonic() + SENT_AGAIN_S_MAX
        while True:
            figures = await audit(self.cast, self.calls, expected, self.reports)
            if not figures.broken or time.monotonic() > end:
                return figures
            await asyncio.sleep(1.0)

    async def rest(self) -> None:
        """Let everything come to rest in between."""
        await at_rest(self.world)


Play = Callable[[Scene], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the matrix. `alone`: it needs a world of its own, of so many gateways and keepers.

    `clustered`: its Redis is a cluster.
    """

    name: str
    title: str
    play: Play
    alone: bool
    only_long: bool
    limit_s: float
    gateways: int
    keepers: int
    clustered: bool = False


NAMED: dict[str, Row] = {}


def row(
    title: str,
    *,
    alone: bool = False,
    only_long: bool = False,
    limit_s: float = 900.0,
    gateways: int = 2,
    keepers: int = 1,
    clustered: bool = False,
) -> Callable[[Play], Play]:
    """Name a play by its function: a row of the matrix."""

    def named(play: Play) -> Play:
        name = play.__name__
        assert name not in NAMED
        NAMED[name] = Row(name, title, play, alone, only_long, limit_s, gateways, keepers, clustered)
        return play

    return named
