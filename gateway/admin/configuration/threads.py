"""Work beside the event loop. Whoever is cancelled waits for its end: what it holds is counted until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gateway.admin.http import metered

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Do a step of work in a thread. A step is bounded: nothing ends a thread before it is through."""
    running = asyncio.ensure_future(metered.in_thread(work, *given, **named))
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()
