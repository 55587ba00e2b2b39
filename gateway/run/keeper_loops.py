"""Starts a keeper's loops: each runs again after a failure, and its failures are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from gateway.background.loops import Isolation, Loop
from gateway.run.lifecycle import forever
from persistence.engine import READS_ONLY, Engine, reads_only

Run = Callable[[], Awaitable[None]]


def keep_going(
    loops: Mapping[str, Run], log: Callable[..., None], isolation: Isolation, rows: Iterable[Loop] = ()
) -> list[asyncio.Task[None]]:
    """Start `loops` and `rows` as tasks, whose failures `isolation` counts; return the tasks."""
    loops = {**{row.name: partial(row.run, isolation) for row in rows}, **loops}
    isolation.watch(loops)
    failed = isolation.pass_failed
    return [asyncio.create_task(forever(name, run, log, failed=failed)) for name, run in loops.items()]


# The interval of checks whether PostgreSQL accepts writes.
READS_ONLY_LOOK_S = 5.0


async def watch_read_only(
    engine: Engine, log: Callable[..., None], look_s: float = READS_ONLY_LOOK_S
) -> None:
    """Log when PostgreSQL begins to refuse writes, as after a failover, and when it accepts them again."""
    before = False
    while True:
        now = await reads_only(engine)
        if now and not before:
            log("postgresql is read-only", why=READS_ONLY, level="error")
        elif before and not now:
            log("postgresql is read-only no more")
        before = now
        await asyncio.sleep(look_s)
