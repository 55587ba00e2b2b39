"""A keeper's loops, begun together: each runs again after a failure, and its failures are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from gateway.background.isolation import Isolation
from gateway.background.loops import Loop
from gateway.run.stopping import forever

Run = Callable[[], Awaitable[None]]


def keep_going(
    loops: Mapping[str, Run], log: Callable[..., None], isolation: Isolation, rows: Iterable[Loop] = ()
) -> list[asyncio.Task[None]]:
    """Begin these, by their names."""
    loops = {**{row.name: partial(row.run, isolation) for row in rows}, **loops}
    isolation.watch(loops)
    failed = isolation.pass_failed
    return [asyncio.create_task(forever(name, run, log, failed=failed)) for name, run in loops.items()]
