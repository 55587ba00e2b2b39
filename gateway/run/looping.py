"""A keeper's loops, begun together: each runs again after a failure, and its failures are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from gateway.background.isolation import Isolation
from gateway.run.stopping import forever

Loop = Callable[[], Awaitable[None]]


def keep_going(
    loops: Mapping[str, Loop], log: Callable[..., None], isolation: Isolation
) -> list[asyncio.Task[None]]:
    """Begin these, by their names."""
    isolation.watch(loops)
    failed = isolation.pass_failed
    return [asyncio.create_task(forever(name, run, log, failed=failed)) for name, run in loops.items()]
