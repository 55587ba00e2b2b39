"""The event loop of our processes, which wakes up rarely, so that an idle process costs little.

Timers that are long enough wait for the next tick, so that many fire together. None fires early.
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
# The part of a tick by which a time counts as the tick before, because of rounding.
EARLY = 1e-4


def coarse(delay: float, now: float) -> float:
    """Return `delay` in seconds; a long one is extended to end on a tick. `now` is the loop's time."""
    if delay < COARSE_S_MIN:
        return delay
    return max(delay, ceil((now + delay) / TICK_S - EARLY) * TICK_S - now)


class CoarseLoop(uvloop.Loop):
    """An event loop whose timers of at least `COARSE_S_MIN` fire at multiples of `TICK_S`."""

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
