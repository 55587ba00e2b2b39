"""One coarse clock a worker: every deadline of the data plane is an attribute it looks at.

A timer for each request would cost more than the request, so all deadlines are checked every
`tick_s`. Time in which the loop stood still does not pass: what others sent meanwhile is read first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.core.wait import Awake

NEVER = float("inf")
# What passes between two ticks at most: longer than a pooled connection is taken for open unlooked at.
GAP_S_MAX = 0.3


class Clock:
    """The time of the last tick, in seconds awake; it begins as the monotonic clock's. `check` is told it."""

    __slots__ = ("_awake", "_check", "_loop", "_seconds", "_tick_s", "_timer", "now")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: Callable[[], float],
        tick_s: float,
        check: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._tick_s = tick_s
        self._check = check
        self._timer: asyncio.TimerHandle | None = None
        self.now = seconds()
        self._awake = Awake(self.now, max(GAP_S_MAX, tick_s))

    def start(self) -> None:
        """Begin to tick."""
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def stop(self) -> None:
        """Stop ticking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        self.now = now = self._awake.advance(self._seconds())
        self._check(now)
