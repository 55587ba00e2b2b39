"""The event loop of our processes: a process that wakes up seldom costs little while nothing happens.

Timers that are long enough wait for the next tick, so all of them go off together. None goes off early.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from math import ceil
from typing import Any, TypeVarTuple, Unpack

import uvloop

Ts = TypeVarTuple("Ts")
TICK_S, COARSE_S_MIN = 0.1, 0.2
# Of a tick: a moment that is one but for its last digits is one.
EARLY = 1e-4


def coarse(delay: float, now: float) -> float:
    """Return a delay that ends at the next tick, where it is a long one."""
    if delay < COARSE_S_MIN:
        return delay
    return max(delay, ceil((now + delay) / TICK_S - EARLY) * TICK_S - now)


class CoarseLoop(uvloop.Loop):
    """Timers of `COARSE_S_MIN` and more go off at multiples of `TICK_S`."""

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        delay = coarse(delay, self.time())
        return super().call_later(delay, callback, *args, context=context)


def run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main, loop_factory=CoarseLoop)
